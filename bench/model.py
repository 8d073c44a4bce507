"""Predicted speeds on an A100 and an H100, by a time model (bench/clocks.py): not measurements.

    python bench/model.py

The first table is a check: the model beside published speeds of FlashAttention. What our kernels
do is counted (bench/counts.py writes it into docs/counts.csv); what four calls of FlashAttention
cost beside themselves (cutting V, subtracting, adding up dQ and dK) is left out, in their favour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import predictions
from clocks import DEVICES
from counting.record import read
from marks import DECODE_BYTES
from neighbours import FA2, FA3
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent


def show(header: list[str], lines: list[list[object]]) -> None:
    print(tabulate(lines, header, tablefmt="github", floatfmt=".4g"), end="\n\n")


def check() -> None:
    """The model beside what was published."""
    show(
        ["TFLOP/s", "d", "device", "published", "model", "error, %"],
        [
            [n.name, n.d, n.device.name, n.published, n.modelled, 100 * n.error]
            for n in [*FA2.values(), *FA3.values()]
        ],
    )


def verdict(value: float, goal: float | None) -> str:
    if goal is None:
        return ""
    return f"{goal:g}" if value >= goal else f"{goal:g}: missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, default=ROOT / "docs" / "counts.csv")
    parser.add_argument("--seqlen", type=int, nargs="+", default=[2048, 4096, 16384])
    args = parser.parse_args()
    counts = read(args.counts)
    check()
    show(
        ["predicted, causal", "device", "d", "S", "TFLOP/s", "× four FA2", "goal", "× four FA3"],
        [
            [p.direction, p.device, p.d, p.seqlen, p.tflops, p.times_fa2,
             verdict(p.times_fa2, p.goal), p.times_fa3]
            for device in DEVICES
            for p in predictions.training(counts, device, args.seqlen)
        ],
    )  # fmt: skip
    show(
        ["predicted decode step", "MB of cache", "µs", "of bandwidth, %", "goal"],
        [
            [p.device, p.cache_bytes >> 20, 1e6 * p.seconds, 100 * p.of_bandwidth,
             verdict(100 * p.of_bandwidth, 100 * p.goal)]
            for device in DEVICES
            for p in (predictions.decode(device, n * DECODE_BYTES) for n in (1, 4, 16))
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
