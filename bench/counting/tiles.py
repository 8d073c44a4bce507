"""How large the tiles of a kernel are: found by making the problem larger until it does more."""

from __future__ import annotations

from functools import cache

from .runs import Shape, only, training

SIZES = (16, 32, 64, 128, 256)


@cache
def tile(shape: Shape, kernel: str) -> tuple[int, int]:
    """Query rows and keys that are worked on together."""

    def flop(rows: int, keys: int) -> float:
        return only(training(shape, rows, keys, False), kernel).counters["mma_flop"]

    least = flop(1, 1)
    rows = next((n for n in SIZES if flop(n + 1, 1) > least), None)
    keys = next((n for n in SIZES if flop(1, n + 1) > least), None)
    if rows is None or keys is None:
        raise SystemExit(f"{kernel} does no more for {SIZES[-1] + 1} rows or keys than for one")
    return rows, keys
