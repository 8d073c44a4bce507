"""How a kernel cuts its work: found by making the problem larger until it does more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .runs import Shape, only, training

SIZES = (16, 32, 64, 128, 256)


@cache
def tile(shape: Shape, kernel: str) -> tuple[int, int]:
    """Query rows and keys that are multiplied together, or not at all."""

    def flop(rows: int, keys: int) -> float:
        return _counter("mma_flop", shape, kernel, rows, keys)

    least = flop(1, 1)
    return (
        _first(kernel, lambda n: flop(n + 1, 1) > least),
        _first(kernel, lambda n: flop(1, n + 1) > least),
    )


@cache
def block_rows(shape: Shape) -> int:
    """Of a CTA of the forward: with the next row the keys are copied again."""
    row = 2 * 2 * shape.d  # bytes of Q

    def grows(n: int) -> bool:
        fewer, more = (_counter("async_bytes", shape, "fwd_kernel", m, 1) for m in (n, n + 1))
        return more - fewer > row

    return _first("fwd_kernel", grows)


@cache
def block_keys(shape: Shape) -> int:
    """Of a CTA of the backward: with the next key the rows are copied again."""
    key = 2 * (shape.k_components * shape.d + shape.dv)  # bytes of K and V

    def grows(n: int) -> bool:
        fewer, more = (_counter("async_bytes", shape, "bwd_kernel", 1, m) for m in (n, n + 1))
        return more - fewer > key

    return _first("bwd_kernel", grows)


def _counter(name: str, shape: Shape, kernel: str, rows: int, keys: int) -> float:
    return only(training(shape, rows, keys, False), kernel).counters[name]


def _first(kernel: str, more: Callable[[int], bool]) -> int:
    found = next((n for n in SIZES if more(n)), None)
    if found is None:
        raise SystemExit(f"{kernel} does no more for {SIZES[-1] + 1} rows or keys than for one")
    return found
