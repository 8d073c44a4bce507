"""What the CUDA kernels do, counted: no GPU is needed, and none would count better.

    python bench/counts.py --csv docs/counts.csv

Three sources: ptxas' report (registers, spills), the machine code of the main loop (bench/sass.py)
and runs in the simulator (tests/ptxsim): tensor core flop, shared-memory wavefronts, exp2s, bytes.
A figure over its limit (bench/marks.py) stands with the limit; counting/record.py says what each
figure is. The last table sets the formulas beside those of several calls of stock kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from counting import decoding, training  # noqa: E402
from counting.decoding import Step  # noqa: E402
from counting.record import Counts, write  # noqa: E402
from counting.runs import Shape  # noqa: E402
from marks import limits, misses  # noqa: E402
from neighbours import FA2, RECIPES  # noqa: E402
from tabulate import tabulate  # noqa: E402

WIDE = [Shape(d, 2 * d) for d in (32, 64, 96, 128)]
NARROW = [Shape(d, d) for d in (32, 64, 96, 128)]  # DIFF V2
STEPS = [
    *(Step(shape) for shape in WIDE + NARROW),
    Step(Shape(128, 256), nheads=8, page=16),
    Step(Shape(64, 128), nheads=16, page=256),
    Step(Shape(64, 128), splits=1),
]
TABLES = {
    ("fwd", "fwd saving", "bwd"): [
        "registers", "spilled_bytes", "tile_rows", "tile_keys", "hmma", "others_per_hmma",
        "flop_ratio", "loop_wavefronts_per_mma", "wavefronts_per_mma", "loop_wavefronts_ratio",
        "wavefronts_ratio", "global_bytes_ratio", "reds_per_step", "sectors_per_red",
        "saved_bytes_per_row",
    ],
    ("bwd prepare", "bwd round", "bwd weight", "combine"): [
        "registers", "spilled_bytes", "bytes_per_row",
    ],
    ("decode",): [
        "registers", "spilled_bytes", "copied_ratio", "distinct_ratio", "workspace_ratio",
        "wavefronts_ratio", "mma_per_block", "instructions_per_block", "launches",
    ],
}  # fmt: skip


def count_all(seqlen: int) -> Iterator[Counts]:
    for shape in WIDE + NARROW:
        for causal in (False, True):
            yield training.forward(shape, seqlen, causal)
            yield training.backward(shape, seqlen, causal)
        yield training.forward_saving(shape, seqlen, False)
        yield from training.beside_backward(shape, seqlen)
    for step in STEPS:
        yield from decoding.decode(step)


def cell(c: Counts, name: str) -> str:
    """A figure, and its limit where it is over that."""
    if name not in c.figures:
        return ""
    value = f"{c.figures[name]:.4g}"
    return f"{value} > {limits(c)[name]:g}" if name in misses(c) else value


def show(counts: list[Counts]) -> None:
    for kernels, names in TABLES.items():
        lines = [
            [f"{c.kernel} ({c.headdim}, {c.headdim_v})", c.problem, *(cell(c, n) for n in names)]
            for c in counts
            if c.kernel in kernels
        ]
        header = ["kernel", "problem", *(name.replace("_", " ") for name in names)]
        print(tabulate(lines, header, tablefmt="github", disable_numparse=True), end="\n\n")


def show_neighbours(counts: list[Counts]) -> None:
    """Flop a pair and bytes a token in units of d, ours counted; and FA2's published speeds."""
    counted = {
        c.kernel: f" ({c.figures['flop_per_pair'] / c.headdim:.4g} counted)"
        for c in counts
        if (c.headdim, c.headdim_v) == (64, 128) and c.kernel in ("fwd", "bwd")
    }
    lines = [
        [name, *(f"{n}d{counted.get(way, '') if name == 'ours' else ''}" for way, n in row.items())]
        for name, row in RECIPES.items()
    ]
    header = ["(d, dv) = (64, 128)", "forward flop", "backward flop", "decoding, bytes a token"]
    print(tabulate(lines, header, tablefmt="github"), end="\n\n")
    speeds = ", ".join(f"{n.name} d = {n.d}: {n.published:g}" for n in FA2.values())
    print(f"Published, A100, TFLOP/s: {speeds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--csv", type=Path, help="also write the figures there")
    args = parser.parse_args()
    counts = list(count_all(args.seqlen))
    show(counts)
    show_neighbours(counts)
    if args.csv:
        write(args.csv, counts)


if __name__ == "__main__":
    main()
