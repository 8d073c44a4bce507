"""Rewrite the tables of the CUDA kernels in README.md and docs/counts.md, from docs/counts.csv.

python bench/counts.py --csv docs/counts.csv
python bench/gpu_page.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import gpu_tables
from clocks import A100, H100, Device
from counting.record import FIGURES, KERNELS, Counts, read
from decode_model import decode
from gpu_tables import BESIDE, MATRIX, SEQLENS, Table, goal_text, judged, share_text, truncated
from marks import DECODE_BYTES, DECODE_GOAL, GOALS, limits, misses
from neighbours import RECIPES
from page import rewrite, table
from predictions import training

ROOT = Path(__file__).resolve().parent.parent
SUMMED_UP = ("flop_ratio", "others_per_hmma", "loop_wavefronts_per_mma")
HEADER = ["", "d", "flop a pair: ours, four calls", "counted ÷ formula", "others an HMMA",
          "shared wavefronts an mma", "predicted × four FA2 calls, A100: S = 2k, 4k, 16k", "goal",
          "H100"]  # fmt: skip
TITLES = {"fwd": "forward", "bwd": "backward", "fwd + bwd": "forward + backward"}


def summary(counts: list[Counts]) -> Table:
    """README's: the two widths that matter most."""
    return HEADER, [*training_lines(counts), *decode_lines(counts)]


def training_lines(counts: list[Counts]) -> Iterator[list[str]]:
    for direction, goals in GOALS.items():
        kernels = direction.split(" + ")
        ours, theirs = (
            sum(RECIPES[recipe][kernel] for kernel in kernels)
            for recipe in ("ours", "four calls, V = d")
        )
        for d, goal in goals.items():
            yield [TITLES[direction], str(d), f"{ours}d, {theirs}d",
                   *figures(counts, direction, d), times(counts, A100, direction, d),
                   goal_text(goal), times(counts, H100, direction, d)]  # fmt: skip


def figures(counts: list[Counts], kernel: str, d: int) -> list[str]:
    """Each beside its limit; a direction that takes two kernels has none of its own."""
    shape = (kernel, d, 2 * d)
    found = [c for c in counts if (c.kernel, c.headdim, c.headdim_v) == shape]
    cells = [limited(c, name) for c in found if "full" in c.problem for name in SUMMED_UP]
    return cells or [""] * len(SUMMED_UP)


def limited(c: Counts, name: str) -> str:
    value = f"{c.figures[name]:.3f}"
    return f"{f'**{value}**' if name in misses(c) else value} (≤ {limits(c)[name]:g})"


def times(counts: list[Counts], device: Device, direction: str, d: int) -> str:
    found = (p for p in training(counts, device, SEQLENS) if (p.direction, p.d) == (direction, d))
    return ", ".join(judged(truncated(p.times_fa2), p.times_fa2, p.goal) for p in found)


def decode_lines(counts: list[Counts]) -> Iterator[list[str]]:
    ours, theirs = (RECIPES[name]["decode"] for name in ("ours", "four calls, V = d"))
    copied = max(c.figures["copied_ratio"] for c in counts if c.kernel == "decode")
    for split, keys in ((False, "many sequences"), (True, "few: keys in splits")):
        found = [decode(counts, device, DECODE_BYTES, split) for device in (A100, H100)]
        a100, h100 = (judged(share_text(p), p.usual, DECODE_GOAL) for p in found)
        yield [f"decoding, {DECODE_BYTES >> 20} MB of cache, {keys}", "64",
               f"bytes a token: {ours}d, {theirs}d", f"{copied:.3f}", "", "",
               f"{a100} of memory's bandwidth", f"≥ {DECODE_GOAL:.0%}", h100]  # fmt: skip


def caption() -> str:
    """How far the model is from what was published."""
    _, lines = gpu_tables.check()
    errors = ", ".join(f"{name} d = {d} {error}" for name, d, *_, error in lines)
    return f"The model beside published speeds: {errors}."


def meanings(names: dict[str, str]) -> str:
    return "\n".join(f"- *{name.replace('_', ' ')}*: {text}" for name, text in names.items())


def write(readme: Path, page: Path, counts: list[Counts]) -> None:
    rewrite(readme, "gpu table", f"{table(*summary(counts))}\n\n{caption()}")
    rewrite(page, "kernels", meanings(KERNELS))
    rewrite(page, "figures", meanings(FIGURES))
    for name, built in {
        "training": gpu_tables.counted(counts, MATRIX),
        "decoding": gpu_tables.counted(counts, ("decode",)),
        "beside": gpu_tables.counted(counts, BESIDE),
        "formulas": gpu_tables.formulas(counts),
        "check": gpu_tables.check(),
        "predicted training": gpu_tables.predicted_training(counts, SEQLENS),
        "predicted decoding": gpu_tables.predicted_decode(counts),
    }.items():
        rewrite(page, name, table(*built))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, default=ROOT / "docs" / "counts.csv")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "counts.md")
    args = parser.parse_args()
    write(args.readme, args.page, read(args.counts))


if __name__ == "__main__":
    main()
