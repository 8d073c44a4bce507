"""Predicted speeds on an A100 and an H100, by a time model (bench/clocks.py): not measurements.

    python bench/model.py

The first table is a check: the model beside published speeds of FlashAttention. What our kernels
do is counted (bench/counts.py writes it into docs/counts.csv); what four calls of FlashAttention
cost beside themselves (cutting V, subtracting, adding up dQ and dK) is left out, in their favour.
Bold misses its goal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gpu_tables
from counting.record import read
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path, default=ROOT / "docs" / "counts.csv")
    parser.add_argument("--seqlen", type=int, nargs="+", default=gpu_tables.SEQLENS)
    args = parser.parse_args()
    counts = read(args.counts)
    for header, lines in (
        gpu_tables.check(),
        gpu_tables.predicted_training(counts, args.seqlen),
        gpu_tables.predicted_decode(counts),
    ):
        print(tabulate(lines, header, tablefmt="github", disable_numparse=True), end="\n\n")


if __name__ == "__main__":
    main()
