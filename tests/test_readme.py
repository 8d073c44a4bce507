"""The README's code runs, and its two ways to compute the same thing agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_five_lines_equal_the_formula() -> None:
    torch.manual_seed(0)
    call, formula = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(call, scope)
    fused = scope["out"]
    exec(formula, scope)
    assert scope["out"] is not fused
    torch.testing.assert_close(fused, scope["out"], rtol=1e-4, atol=1e-5)
