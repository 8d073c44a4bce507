"""A time model of the kernels, fed with what they do: predictions, not measurements.

    python bench/model.py

A pair of a query and a key costs each unit of an SM some clocks: the tensor cores, shared memory,
exp2 and the fp32/integer pipes. They overlap, but not perfectly:

    clocks = (sum over units of clocks^1.5)^(2/3)

The tables begin with a check: the model beside FlashAttention-2's published speeds. What ours
do comes from the simulator and from ptxas' machine code (bench/counts.py).
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

from marks import A100, DEVICES, FA2_A100, FORWARD_FLOP, Device
from tabulate import tabulate

GOALS = {64: 1.5, 128: 1.25}  # forward, A100


@dataclass(frozen=True)
class Work:
    """What a visible pair costs."""

    mma_flop: float
    shared_bytes: float
    exp2: float
    alu: float  # fp32 and integer instructions, by thread


# FlashAttention-2's forward: wavefronts an mma of 4096 flop as our simulator counts them in its
# hdim 64 kernel, and as its tiles give them for hdim 128, cp.async's writes left out as for ours;
# FFMA, FMNMX, FADD and half a conversion an element.
FA2_FORWARD = {
    d: Work(4 * d, 128 * wavefronts * 4 * d / 4096, 1, 3.5)
    for d, wavefronts in ((64, 1.15), (128, 1.28))
}


def clocks(work: Work, device: Device) -> float:
    """A pair's time on one SM."""
    units = (
        work.mma_flop / device.tensor_flop,
        work.shared_bytes / device.shared_bytes,
        work.exp2 / device.exp2,
        work.alu / device.fp32,
    )
    return sum(u**1.5 for u in units) ** (2 / 3)


def tflops(work: Work, flop: float, device: Device) -> float:
    """Useful flop a second of a pair that counts for `flop`."""
    return flop / clocks(work, device) * device.sms * device.ghz / 1e3


def rounding(seqlen: int, rows: int, keys: int) -> float:
    """Pairs of the tiles that a causal pass visits, over the visible ones."""
    blocks = range(rows, seqlen + rows, rows)
    return (
        sum(-(-min(end, seqlen) // keys) * keys * rows for end in blocks)
        * 2
        / (seqlen * (seqlen + 1))
    )


def ours(path: Path) -> dict[int, Work]:
    """By head dim, V twice as wide, from the figures that counts.py wrote."""
    with path.open(newline="") as file:
        return {
            int(row["headdim"]): Work(
                float(row["flop_per_pair"]),
                float(row["shared_bytes_per_pair"]),
                float(row["exp2_per_pair"]),
                float(row["arithmetic_per_pair"]),
            )
            for row in csv.DictReader(file)
            if row["kernel"] == "fwd" and row["causal"] == "False"
            and int(row["headdim_v"]) == 2 * int(row["headdim"])
        }  # fmt: skip


def check() -> None:
    """The model beside what was published."""
    lines = []
    for d, work in FA2_FORWARD.items():
        model, published = tflops(work, 4 * d, A100), FA2_A100["fwd", d]
        lines.append([f"FA2 forward, d = {d}", published, model, 100 * (model / published - 1)])
    header = ["A100, TFLOP/s", "published", "model", "error, %"]
    print(tabulate(lines, header, tablefmt="github", floatfmt=".3g"), end="\n\n")


def predict(work: dict[int, Work], device: Device, seqlens: list[int]) -> None:
    """Causal forward against four calls of FlashAttention-2, V cut in halves."""
    lines = []
    for d, goal in GOALS.items():
        our_rows, fa2_keys = (128 if d <= 64 else 64), (128 if d <= 64 else 64)
        for s in seqlens:
            our_time = clocks(work[d], device) * rounding(s, our_rows, 32)
            fa2_time = 4 * clocks(FA2_FORWARD[d], device) * rounding(s, 128, fa2_keys)
            speed = FORWARD_FLOP["ours"] * d / our_time * device.sms * device.ghz / 1e3
            lines.append([d, s, speed, fa2_time / our_time, goal])
    header = [
        f"{device.name}, predicted: d",
        "S",
        "TFLOP/s of 12d a pair",
        "× four FA2 calls",
        "goal",
    ]
    print(tabulate(lines, header, tablefmt="github", floatfmt=".3g"), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, default=Path("docs/counts.csv"))
    parser.add_argument("--seqlen", type=int, nargs="+", default=[2048, 4096, 16384])
    args = parser.parse_args()
    check()
    for device in DEVICES:
        predict(ours(args.counts), device, args.seqlen)


if __name__ == "__main__":
    main()
