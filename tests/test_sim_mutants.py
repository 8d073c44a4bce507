"""A sample of what tests/mutants*.py do in full: the suite has to notice a weakened kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.impls import Impl
from support.simulator import Simulator

SCRIPTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("script", "draw"),
    [
        ("mutants.py", "--kinds barrier wait --least 0.85"),
        ("mutants.py", "--limit 16 --least 0.8"),
        ("mutants_decode.py", "--kernel few --kinds barrier wait --limit 8 --least 0.85"),
        ("mutants_decode.py", "--kernel combine --kinds barrier wait --least 0.85"),
        ("mutants_backward.py", "--kernel main --limit 8 --least 0.8"),
        ("mutants_backward.py", "--kernel prepare --limit 8 --least 0.8"),
    ],
)
def test_mutants_are_killed(impl: Impl, sim: Simulator, script: str, draw: str) -> None:
    """In a process of its own, where no kernel has been parsed yet."""
    command = [sys.executable, SCRIPTS / script, *draw.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
