"""The table of killed mutants: how it is kept, and that its page shows it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))

from mutation import scores  # noqa: E402
from mutation.scores import Score, read, record  # noqa: E402

CSV, PAGE = ROOT / "docs" / "mutants.csv", ROOT / "docs" / "mutants.md"
SCORE = Score("fwd", "(64, 128)", "bf16", 100, 20, 19, "2026-11-25")


def test_the_page_shows_the_scores(tmp_path: Path) -> None:
    shutil.copy(PAGE, tmp_path)
    scores.show(tmp_path / PAGE.name, read(CSV))
    assert (tmp_path / PAGE.name).read_text() == PAGE.read_text(), "python bench/plot.py mutants"


def test_a_score_takes_the_place_of_the_kernels_last(tmp_path: Path) -> None:
    path = tmp_path / "mutants.csv"
    other = replace(SCORE, shape="(128, 256)")
    for score in (SCORE, other, replace(SCORE, killed=20)):
        record(path, score)
    assert read(path) == [replace(SCORE, killed=20), other]


@pytest.mark.parametrize(("run", "shown"), [(20, "20, drawn"), (100, "all")])
def test_a_line_says_how_many_were_run(run: int, shown: str) -> None:
    assert scores.line(replace(SCORE, run=run))[4] == shown
    assert scores.line(SCORE)[5] == "19 (95.0 %)"
