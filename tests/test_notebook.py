"""examples/tour.ipynb runs from a fresh kernel, and keeps the outputs that it has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel", reason="ipykernel is not installed")
nbformat = pytest.importorskip("nbformat")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import notebook  # noqa: E402


def kinds(document: Any) -> list[list[str]]:
    """Of each cell's outputs: text, or the richest form of a result."""
    return [
        [output.get("name") or sorted(output["data"])[0] for output in cell.get("outputs", [])]
        for cell in document.cells
    ]


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own assertions are the test: the error of a call, and that the trained layer finds."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    kept = nbformat.read(notebook.NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    found = kinds(notebook.run())
    assert found == kinds(kept), "run `make notebook`"
    assert ["image/png"] in found
