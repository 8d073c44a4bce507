"""Several Python threads that call at once get what one thread gets, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from support.case import Case
from support.checks import run_backward
from support.data import flat, make_problem
from support.impls import Impl
from torch import Tensor

# The simulator is one device, which serves one caller.
pytestmark = [pytest.mark.needs(what) for what in ("has_ops", "same_bits", "traces")]
THREADS, CALLS = 4, 6


def at_once(call: Callable[[int], list[Tensor]]) -> list[list[Tensor]]:
    """call(i) in thread i, all of them started together, again and again."""
    start = Barrier(THREADS)

    def work(i: int) -> list[Tensor]:
        start.wait()
        return [x for _ in range(CALLS) for x in call(i)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def same_as_alone(call: Callable[[int], list[Tensor]]) -> None:
    alone = [call(i) * CALLS for i in range(THREADS)]
    for got, expected in zip(at_once(call), alone, strict=True):
        assert len(got) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_forward_and_backward(impl: Impl) -> None:
    case = Case(causal=True, norm="affine", lam="token", heads=4, heads_k=2, dtype=impl.dtypes[0])
    sizes = [(70, 130), (200, 200), (9, 300), (129, 64)]  # memory of different sizes, and scratch
    problems = [make_problem(case.but(sq=sq, sk=sk), impl.device) for sq, sk in sizes]
    same_as_alone(lambda i: list(run_backward(impl.func, problems[i]).values()))


def test_decoding(impl: Impl) -> None:
    case = Case(sq=1, sk=512, dtype=impl.dtypes[0], heads=4, heads_k=2)
    problems = [make_problem(case, impl.device) for _ in range(THREADS)]

    def decode(i: int) -> list[Tensor]:
        p = problems[i]
        k_cache, v_cache = flat(p.k).clone(), p.v.clone()
        out = impl.kvcache(flat(p.q), k_cache, v_cache, 0.5, flat(p.k)[:, :1], p.v[:, :1],
                           cache_seqlens=400 + i, num_splits=3)  # fmt: skip
        return [out, k_cache, v_cache]

    same_as_alone(decode)
