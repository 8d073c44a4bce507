"""Rewrite README.md's table of the CUDA kernels: counted figures, predicted speeds.

python bench/counts.py --csv docs/counts.csv
python bench/gpu_table.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import predictions
from clocks import A100, H100, Device
from counting.record import Counts, read
from marks import DECODE_BYTES, DECODE_GOAL, GOALS, limits, misses
from neighbours import FA2, FA3, RECIPES
from page import rewrite, table

ROOT = Path(__file__).resolve().parent.parent
SEQLENS = [2048, 4096, 16384]
COUNTED = ("flop_ratio", "others_per_hmma", "loop_wavefronts_per_mma")
HEADER = ["", "d", "flop a pair: ours, four calls", "counted ÷ formula", "others an HMMA",
          "shared wavefronts an mma", "predicted × four FA2 calls, A100: S = 2k, 4k, 16k", "goal",
          "H100"]  # fmt: skip
TITLES = {"fwd": "forward", "bwd": "backward", "fwd + bwd": "forward + backward"}


def training_lines(counts: list[Counts]) -> Iterator[list[str]]:
    for direction, goals in GOALS.items():
        kernels = direction.split(" + ")
        ours, theirs = (
            sum(RECIPES[recipe][kernel] for kernel in kernels)
            for recipe in ("ours", "four calls, V = d")
        )
        for d, goal in goals.items():
            yield [TITLES[direction], str(d), f"{ours}d, {theirs}d", *counted(counts, direction, d),
                   times(counts, A100, direction, d), f"≥ {goal:g}",
                   times(counts, H100, direction, d)]  # fmt: skip


def counted(counts: list[Counts], kernel: str, d: int) -> list[str]:
    """Each figure beside its limit; a direction that takes two kernels has none of its own."""
    shape = (kernel, d, 2 * d)
    found = [c for c in counts if (c.kernel, c.headdim, c.headdim_v) == shape]
    return [limited(c, name) for c in found if "full" in c.problem for name in COUNTED] or [""] * 3


def limited(c: Counts, name: str) -> str:
    return f"{judged(f'{c.figures[name]:.3f}', name not in misses(c))} (≤ {limits(c)[name]:g})"


def times(counts: list[Counts], device: Device, direction: str, d: int) -> str:
    found = (
        p
        for p in predictions.training(counts, device, SEQLENS)
        if (p.direction, p.d) == (direction, d)
    )
    return ", ".join(
        judged(f"{p.times_fa2:.2f}", p.goal is None or p.times_fa2 >= p.goal) for p in found
    )


def decode_line(counts: list[Counts]) -> list[str]:
    ours, theirs = (RECIPES[name]["decode"] for name in ("ours", "four calls, V = d"))
    copied = max(c.figures["copied_ratio"] for c in counts if c.kernel == "decode")
    shares = [predictions.decode(device, DECODE_BYTES).of_bandwidth for device in (A100, H100)]
    a100, h100 = (judged(f"{share:.0%}", share >= DECODE_GOAL) for share in shares)
    return [f"decoding, {DECODE_BYTES >> 20} MB of cache", "any",
            f"bytes a token: {ours}d, {theirs}d", f"{copied:.3f}", "", "",
            f"{a100} of memory's bandwidth", f"≥ {DECODE_GOAL:.0%}", h100]  # fmt: skip


def judged(text: str, good: bool) -> str:
    return text if good else f"**{text}**"


def caption() -> str:
    """How far the model is from what was published."""
    found = [*FA2.values(), *FA3.values()]
    errors = ", ".join(f"{n.name} d = {n.d} {100 * n.error:+.1f}%" for n in found)
    return f"The model beside published speeds: {errors}."


def write(readme: Path, counts: list[Counts]) -> None:
    lines = [*training_lines(counts), decode_line(counts)]
    rewrite(readme, "gpu table", f"{table(HEADER, lines)}\n\n{caption()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, default=ROOT / "docs" / "counts.csv")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    write(args.readme, read(args.counts))


if __name__ == "__main__":
    main()
