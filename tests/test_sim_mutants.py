"""A sample of what tools/mutants.py does in full: the suite has to notice a weakened kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.impls import Impl
from support.simulator import Simulator

SCRIPT = Path(__file__).parent.parent / "tools" / "mutants.py"


@pytest.mark.parametrize(
    "draw",
    [
        "fwd --kinds barrier wait --least 0.85",
        "fwd --limit 16 --least 0.8",
        "fwd sm90 --kinds fence commit wait parity box --limit 16 --least 0.9",
        "fwd sm90 --limit 8 --least 0.75",
        "decode few --kinds barrier wait --limit 8 --least 0.85",
        "combine --kinds barrier wait --least 0.85",
        "bwd main --limit 8 --least 0.8",
        "bwd prepare --limit 8 --least 0.8",
    ],
)
def test_mutants_are_killed(impl: Impl, sim: Simulator, draw: str) -> None:
    """In a process of its own, where no kernel has been parsed yet."""
    command = [sys.executable, SCRIPT, *draw.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("asked", "said"),
    [("bwd mian", "no kernel 'bwd mian'; there are fwd, fwd capped, fwd sm90"),
     ("combine --shape 128 256", "combine has checks for (64, 128) alone")],
)  # fmt: skip
def test_what_there_is_not_is_refused(impl: Impl, sim: Simulator, asked: str, said: str) -> None:
    command = [sys.executable, SCRIPT, *asked.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr
