"""Rewrite the tables of killed mutants in docs/kernels*.md, from docs/mutants.csv.

python tests/mutants.py --csv docs/mutants.csv
python bench/mutants_page.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from page import rewrite, table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from support.mutant_scores import Score, read  # noqa: E402

# How the kernels of a page begin.
PAGES = {
    "kernels.md": ("fwd",),
    "kernels_backward.md": ("bwd",),
    "kernels_decode.md": ("decode", "combine", "append"),
}
HEADER = ["kernel", "shape", "dtype", "mutants", "run", "killed", "date"]


def line(score: Score) -> list[str]:
    run = "all" if score.run == score.mutants else f"{score.run:,}, drawn"
    killed = f"{score.killed:,} ({100 * score.share:.1f} %)"
    return [score.kernel, score.shape, score.dtype, f"{score.mutants:,}", run, killed, score.date]


def write(docs: Path, scores: list[Score]) -> None:
    for page, kernels in PAGES.items():
        lines = [line(x) for x in scores if x.kernel.startswith(kernels)]
        rewrite(docs / page, "mutants", table(HEADER, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=ROOT / "docs" / "mutants.csv")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    write(args.docs, read(args.csv))


if __name__ == "__main__":
    main()
