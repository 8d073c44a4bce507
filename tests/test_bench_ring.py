"""bench/ring.py runs, and says what rings save."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "bench" / "ring.py"


def test_bytes_of_each_kind(tmp_path: Path) -> None:
    """Those of full heads grow with the context, those of rings do not."""
    target = tmp_path / "ring.csv"
    command = [sys.executable, SCRIPT, "--seqlens", "512", "1024", "--rounds", "1", "--csv", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
    with target.open() as file:
        size = {(int(r["seqlen"]), r["heads"]): float(r["MB"]) for r in csv.DictReader(file)}
    key = 8 * 256 * 4 / 1e6  # a token of all heads
    for seqlen in (512, 1024):
        assert abs(size[seqlen, "all heads full"] - seqlen * key) < 0.01
        assert abs(size[seqlen, "half of them"] - (seqlen + 320) * key / 2) < 0.01
        assert abs(size[seqlen, "a quarter"] - (seqlen + 3 * 320) * key / 4) < 0.01
        assert abs(size[seqlen, "rings alone"] - 320 * key) < 0.01
