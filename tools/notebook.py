"""Run examples/tour.ipynb and keep its outputs: `python tools/notebook.py`, or `make notebook`.

What differs from run to run or names the machine (times, counts of executions) is not kept.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "tour.ipynb"
SECONDS = 300  # for a cell, on a busy machine; the whole takes half a minute on an idle one


def run() -> nbformat.NotebookNode:
    """The executed notebook; a cell that raises ends it."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
