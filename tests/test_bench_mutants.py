"""The tables of killed mutants: how they are kept, and that the pages show them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.mutant_scores import Score, read, record

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "bench"))

import mutants_page  # noqa: E402

CSV = ROOT / "docs" / "mutants.csv"
SCORE = Score("fwd", "(64, 128)", "bf16", 100, 20, 19, "2026-11-25")


def test_the_pages_show_the_scores(tmp_path: Path) -> None:
    for page in mutants_page.PAGES:
        shutil.copy(ROOT / "docs" / page, tmp_path)
    mutants_page.write(tmp_path, read(CSV))
    for page in mutants_page.PAGES:
        shown = (ROOT / "docs" / page).read_text()
        assert (tmp_path / page).read_text() == shown, "python bench/mutants_page.py"


def test_every_score_is_on_a_page() -> None:
    assert all(score.kernel.startswith(sum(mutants_page.PAGES.values(), ())) for score in read(CSV))


def test_a_score_takes_the_place_of_the_kernels_last(tmp_path: Path) -> None:
    path = tmp_path / "mutants.csv"
    other = replace(SCORE, shape="(128, 256)")
    for score in (SCORE, other, replace(SCORE, killed=20)):
        record(path, score)
    assert read(path) == [replace(SCORE, killed=20), other]


@pytest.mark.parametrize(("run", "shown"), [(20, "20, drawn"), (100, "all")])
def test_a_line_says_how_many_were_run(run: int, shown: str) -> None:
    assert mutants_page.line(replace(SCORE, run=run))[4] == shown
    assert mutants_page.line(SCORE)[5] == "19 (95.0 %)"
