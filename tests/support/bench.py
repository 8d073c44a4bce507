"""The scripts of bench/ as a fixture, and a small problem for them."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .threads import threads

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The scripts of bench/, which import each other by bare name; one thread, they are small."""
    folder = str(ROOT / "bench")
    sys.path.insert(0, folder)
    import speed
    from timing import clocks, libraries, peers, problem, sweep

    with threads(1):
        yield types.SimpleNamespace(
            clocks=clocks,
            libraries=libraries,
            peers=peers,
            problem=problem,
            speed=speed,
            sweep=sweep,
        )
    sys.path.remove(folder)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]


def problem_of(bench: Any, direction: str) -> Any:
    """GQA, and fewer queries than keys where that is usual."""
    sq = 1 if direction == "decode" else 48
    return bench.problem.Problem(direction, "fp32", 2, 4, 2, sq, 48, 16, direction != "decode")
