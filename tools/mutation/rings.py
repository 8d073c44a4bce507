"""What has to notice a weakened kernel of decoding where heads stream: sinks, windows, rings."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from support.case import Case
from support.checks import check_answer
from support.data import make_problem
from support.impls import Impl
from support.ring import make_rings
from test_ring import (
    steps,
    test_next_to_every_cache,
    test_positions_are_absolute,
    test_what_a_step_writes,
)
from test_streaming import decode as step_over_a_cache
from test_streaming import (
    test_each_maps_own_result,
    test_pages_behind_a_gap,
    test_windows_that_begin_in_the_sinks,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from counting.streaming import cost_of_sinks  # noqa: E402

from . import decode  # noqa: E402
from .target import MakeTarget, Target, identifier  # noqa: E402


def check_rings(impl: Impl, group: int) -> None:
    """Before the wrap, at it and behind it; each way of appending; both kinds of heads."""
    few = group < 5
    base = Case(batch=2, d=64, dv=128, causal=True, dtype=torch.bfloat16, lam="token")
    for sink, left, heads_k, streaming, new, splits in (
        (5, 24, 2, None, 1, 1),
        (17, 200, 2, (False, True), 4, 3),
        (0, 31, 3, (True, False, True), 1, 0),
        (16, 15, 1, None, 9, 2),
    ):
        chunks = [90, 1, 1, 2, 4, 3, 1, 4] if few else [90, 5, 9, 30, 2, 70]
        length = sum(chunks) + 150
        case = base.but(sq=length, sk=length, heads=group * heads_k, heads_k=heads_k, sink=sink,
                        window=(left, 0), streaming=streaming, shared_k=new == 9)  # fmt: skip
        p = make_problem(case, impl.device)
        rings = make_rings(p, new, capacity=length)
        check_answer(*steps(impl, rings, [150, *chunks], num_splits=splits), p)


def with_a_sink(impl: Impl) -> Impl:
    """Causal calls without a window, given one that hides nothing: other kernels serve them."""

    def kvcache(*args: Any, **options: Any) -> Any:
        if options.get("causal") and options.get("window_size", (-1, -1)) == (-1, -1):
            options |= {"window_size": (10**6, 0), "sink_size": 1}
        return impl.kvcache(*args, **options)

    return replace(impl, kvcache=kvcache)


def check_streaming(impl: Impl, group: int) -> None:
    check_rings(impl, group)
    rows, most = (1, 1.1) if group < 5 else (9, 1.15)
    assert cost_of_sinks(rows) <= most  # a mutant may do right what it need not do
    decode.check_everything(with_a_sink(impl), group)
    for kind, sq, streaming, splits in (
        ("plain", 2, None, 0),
        ("paged16", 4, (False, True), 3),
        ("indexed", 1, (True, False), 40),
        ("heads_first", 3, None, 1),
    ):
        rows = sq if group < 5 else sq + 4
        # Each group of warps takes blocks of sinks and then of the window.
        case = Case(sq=rows, heads=2 * group, heads_k=2, d=64, dv=128, causal=True, sink=70,
                    window=(100, 0), streaming=streaming, dtype=torch.bfloat16)  # fmt: skip
        step_over_a_cache(impl, case, kind, min(sq, 2), num_splits=splits)
    test_pages_behind_a_gap(impl, "paged16", 2 if group < 5 else 9)
    test_windows_that_begin_in_the_sinks(impl, "plain", 4 if group < 5 else 9)
    for d in (64, 40):
        test_each_maps_own_result(impl, 3 if group < 5 else 40, d)
    for new in (1, 40):
        test_next_to_every_cache(impl, "paged16", new)
    for interleaved in (True, False):
        test_positions_are_absolute(impl, "mixed", interleaved)
    for new in (1, 30):
        test_what_a_step_writes(impl, new)


def _target(name: str, part: str, group: int) -> MakeTarget:
    parts = name, f"bfloat16{part}"
    return lambda shape: Target(parts, lambda impl: check_streaming(impl, group))


TARGETS: dict[str, MakeTarget] = {
    "decode sinks few": _target(decode.DECODE, "Li64ELi128ELi4ELi1ELb1E", 2),
    "decode sinks many": _target(decode.DECODE, "Li64ELi128ELi2ELi4ELb1E", 5),
    "append": _target(identifier("append_kernel"), "", 2),
}
