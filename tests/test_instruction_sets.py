"""DIFFATTN_CPU_ISA, which is read by the first call of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALL = """
import os
import torch
import diffattn_cuda

q, v = torch.ones(1, 4, 2, 8), torch.ones(1, 4, 1, 8)
def call(): return diffattn_cuda.diff_flash_attn_func(q, q, v, 0.5)
"""
REFUSED = """
try:
    call()
except RuntimeError as error:
    assert "DIFFATTN_CPU_ISA is sse" in str(error) and "portable" in str(error), error
else:
    raise SystemExit("not refused")
os.environ["DIFFATTN_CPU_ISA"] = "portable"
"""
CHECK = "assert torch.equal(call(), torch.full((1, 4, 1, 8), 0.5))"


@pytest.mark.parametrize(("asked", "before"), [("", ""), ("Portable", ""), ("SSE", REFUSED)])
def test_which_instruction_set(asked: str, before: str) -> None:
    """None is asked for by nothing; upper case is lower case; a wrong one stops no later call."""
    subprocess.run(
        [sys.executable, "-c", CALL + before + CHECK],
        env=os.environ | {"DIFFATTN_CPU_ISA": asked},
        cwd=Path(__file__).resolve().parents[1],
        timeout=60,
        check=True,
    )
