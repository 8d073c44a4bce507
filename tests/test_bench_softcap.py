"""bench/softcap.py runs, and has a line for each length and direction."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "bench" / "softcap.py"


def test_a_line_for_each() -> None:
    command = [sys.executable, SCRIPT, "--seqlens", "32", "64", "--dtype", "fp32", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all("eager, capped" in line for line in lines)
