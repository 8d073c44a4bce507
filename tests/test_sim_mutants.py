"""A sample of what tests/mutants.py does in full: the suite has to notice a weakened kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.impls import Impl
from support.simulator import Simulator

SCRIPT = Path(__file__).parent / "mutants.py"


@pytest.mark.parametrize(
    "draw",
    [["--kinds", "barrier", "wait", "--least", "0.9"], ["--limit", "16", "--least", "0.8"]],
    ids=["synchronisation", "sample"],
)
def test_mutants_are_killed(impl: Impl, sim: Simulator, draw: list[str]) -> None:
    """In a process of its own, where no kernel has been parsed yet."""
    done = subprocess.run([sys.executable, SCRIPT, *draw], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
