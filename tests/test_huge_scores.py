"""Scores of 10^5 to 10^10, where an fp32 number has no room for the logarithm of a sum.

Scores are products of two numbers, so that equal ones are equal to the bit, in whatever order a
backend adds up channels; others are so far apart that the greatest take all. The formula in fp64 is
the oracle.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cache import make_cache
from support.case import Case, short
from support.checks import exact_forward
from support.data import Problem, flat, make_problem
from support.impls import Impl
from test_kvcache import step
from torch import Tensor

FP16, BF16 = torch.float16, torch.bfloat16
# With x in all channels: scores of 8·x² at d = 64, from 6e8 to 8e10.
HUGE = [(FP16, 9000.0), (FP16, 20000.0), (FP16, 28000.0), (BF16, 30000.0), (BF16, 1e5)]
MASKS: list[dict[str, Any]] = [{}, {"causal": True}, {"window": (40, 3)}]
# What the keys of a third of the sequence each are, in units of x.
COURSES = [(-1, 0, 1), (1, 0, -1), (0, 1, -1), (-1, 1, 0), (0, -1, 0), (-1, -0.5, -1), (0.5, 1, 1)]


def first_channel(like: Tensor, numbers: Tensor) -> Tensor:
    """Zeros, except the first channel of each row of q or k (batch, row, ..)."""
    made = torch.zeros_like(like)
    made[..., 0] = numbers.to(like).reshape(1, -1, 1, 1)
    return made


def problem(impl: Impl, dtype: torch.dtype, **changes: Any) -> Problem:
    case = Case(batch=1, sq=150, sk=170, heads=2, heads_k=1, d=64, dv=128, dtype=dtype)
    return make_problem(case.but(**changes), impl.device).but(lam=0.6)


def equal_scores(p: Problem, x: float, sign: int = 1) -> Problem:
    return p.but(q=torch.full_like(p.q, x), k=torch.full_like(p.k, sign * x))


def course(p: Problem, x: float, thirds: tuple[float, ...]) -> Problem:
    """Keys change twice; of four rows one has the keys' sign, one the other, two small scores."""
    sk, sq = p.k.shape[1], p.q.shape[1]
    keys = torch.tensor(thirds, dtype=torch.float64)[torch.arange(sk) * 3 // sk] * x
    small = 32 / x  # scores of 4 at most
    rows = torch.tensor([x, small, -x, -small], dtype=torch.float64)[torch.arange(sq) % 4]
    keys = torch.where(keys == 0, 64 / x, keys)  # scores of 8 with huge rows
    return p.but(q=first_channel(p.q, rows), k=first_channel(p.k, keys))


def hold(out: Tensor, lse: Tensor, p: Problem) -> None:
    exact, exact_lse = exact_forward(p)
    eps = torch.finfo(out.dtype).eps
    terms = p.v.double().norm(dim=-1).mean()
    error = (out.double() - exact).norm(dim=-1)
    assert bool((error <= eps * (exact.norm(dim=-1) + 0.1 * terms)).all()), float(error.max())
    torch.testing.assert_close(lse.double(), exact_lse, rtol=2e-6, atol=1e-3)


def run(impl: Impl, p: Problem) -> tuple[Tensor, Tensor]:
    out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
    return out, lse


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("mask", MASKS, ids=["full", "causal", "window"])
@pytest.mark.parametrize(("dtype", "x"), HUGE, ids=short)
def test_equal_scores_weigh_alike(
    impl: Impl, dtype: torch.dtype, x: float, mask: dict[str, Any], sign: int
) -> None:
    p = equal_scores(problem(impl, dtype, sq=70, sk=90, **mask), x, sign)
    out, lse = run(impl, p)
    exact, exact_lse = exact_forward(p)
    error = (out.double() - exact).norm() / exact.norm()
    assert float(error) <= torch.finfo(dtype).eps / 2
    torch.testing.assert_close(lse.double(), exact_lse, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(32, 32), (40, 80), (96, 192), (128, 128), (128, 256)], ids=str)
def test_equal_scores_at_every_width(impl: Impl, shape: tuple[int, int]) -> None:
    d, dv = shape
    p = problem(impl, BF16, d=d, dv=dv, shared_k=d == dv, sq=33, causal=True)
    alike = [torch.full((x.shape[1],), 1e8) for x in (p.q, p.k)]
    p = p.but(q=first_channel(p.q, alike[0]), k=first_channel(p.k, alike[1]))
    hold(*run(impl, p), p)


@pytest.mark.parametrize("thirds", COURSES, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=["full", "causal", "window"])
@pytest.mark.parametrize(("dtype", "x"), [(FP16, 60000.0), (BF16, 1e8)], ids=short)
def test_scores_that_come_and_go(
    impl: Impl, dtype: torch.dtype, x: float, mask: dict[str, Any], thirds: tuple[float, ...]
) -> None:
    p = course(problem(impl, dtype, **mask), x, thirds)
    hold(*run(impl, p), p)


@pytest.mark.parametrize("comp", [0, 1])
def test_one_component_alone(impl: Impl, comp: int) -> None:
    p = problem(impl, BF16, causal=True)
    huge = course(p, 1e8, (-1, 1, 0))
    q, k = p.q.clone(), p.k.clone()
    q[..., comp, :], k[..., comp, :] = huge.q[..., comp, :], huge.k[..., comp, :]
    p = p.but(q=q, k=k)
    hold(*run(impl, p), p)


@pytest.mark.parametrize("dtype", [FP16, BF16], ids=short)
def test_other_rows_keep_their_bits(impl: Impl, dtype: torch.dtype) -> None:
    p = problem(impl, dtype, causal=True)
    q = p.q.clone()
    q[:, 5], q[:, 100] = 60000.0, -60000.0
    k = p.k.clone()
    k[:, :3] = 0.5  # row 5 sees these and more, whose scores are huge as well
    others = torch.ones(p.q.shape[1], dtype=torch.bool)
    others[[5, 100]] = False
    calm, stirred = (run(impl, p.but(q=x, k=k)) for x in (p.q, q))
    assert bool(stirred[0].isfinite().all()) and bool(stirred[1].isfinite().all())
    assert torch.equal(calm[0][:, others], stirred[0][:, others])
    assert torch.equal(calm[1][..., others], stirred[1][..., others])


def decoding(impl: Impl, dtype: torch.dtype, sq: int, change: Any, num_splits: int) -> None:
    """A step over three sequences, whose last blocks are ragged, with tokens appended."""
    case = Case(sq=sq, heads=4, heads_k=2, d=64, dv=128, dtype=dtype, causal=True)
    cache = make_cache(case, impl, "paged16", [23, 100, 199])
    changed = change(cache.problem.but(lam=0.6))
    for i, length in enumerate(cache.lengths):
        cache.k[cache.slots(i, 0, length)] = flat(changed.k)[i, :length]
    cache = replace(cache, problem=changed)
    out, lse = step(impl, cache, sq, num_splits=num_splits)
    for i in range(3):
        hold(out[i : i + 1], lse[:, i : i + 1], cache.visible(i, sq))


@pytest.mark.parametrize("num_splits", [1, 2, 3, 5])
@pytest.mark.parametrize("sq", [1, 9])
@pytest.mark.parametrize(
    ("dtype", "x"), [(FP16, 40.0), (FP16, 300.0), (FP16, 28000.0), (BF16, 1e5)], ids=short
)
def test_decoding_weighs_equal_scores_alike(
    impl: Impl, dtype: torch.dtype, x: float, sq: int, num_splits: int
) -> None:
    """In splits of unequal length, too: from 10^4 on an LSE tells their sums no more."""
    decoding(impl, dtype, sq, lambda p: equal_scores(p, x), num_splits)


@pytest.mark.parametrize("num_splits", [1, 4])
@pytest.mark.parametrize("thirds", COURSES, ids=str)
@pytest.mark.parametrize("sq", [4, 9])
def test_decoding_over_scores_that_come_and_go(
    impl: Impl, sq: int, thirds: tuple[float, ...], num_splits: int
) -> None:
    decoding(impl, BF16, sq, lambda p: course(p, 1e8, thirds), num_splits)


@pytest.mark.parametrize("x", [500.0, 1500.0, 30000.0, 1e5, 1e8])
@pytest.mark.parametrize("norm", ["none", "affine"])
def test_gradients_are_finite(impl: Impl, x: float, norm: str) -> None:
    """P is at most 1, a rounding more where scores are around 10^6; see docs/numerics.md."""
    p = problem(impl, BF16, norm=norm, causal=True)
    for made in (equal_scores(p, x), course(p, x, (-1, 0, 1))):
        leaves = [t.clone().requires_grad_() for t in (flat(made.q), flat(made.k), made.v)]
        out = impl.func(*leaves, made.lam, **made.options())
        out.backward(made.dout)
        assert all(t.grad is not None and bool(t.grad.isfinite().all()) for t in leaves)
        if norm == "none":
            most = 1.3 * 1.6 * made.dout.double().abs().sum((1, 2), keepdim=True)
            assert leaves[2].grad is not None
            assert bool((leaves[2].grad.double().abs() <= most).all())


@pytest.mark.needs("clamps_values")  # a CPU rounds such scores to 2 before it compares them
@pytest.mark.parametrize("decoding", [False, True], ids=["forward", "decoding"])
@pytest.mark.parametrize(
    "offsets", [(-12, 0, 2), (0, -12, 2), (-12, -12, 0), (2, 0, -12), (-6, 0, 6)], ids=str
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=short)
def test_rows_turn_far_between_neighbours(
    impl: Impl, dtype: torch.dtype, sign: int, offsets: tuple[int, ...], decoding: bool
) -> None:
    """Scores around ±2^24 in log2 units, from where on CUDA takes them from the greatest.

    Values are the larger the less they weigh, so that each third of the keys has its share.
    """
    p = problem(impl, dtype, sq=8 if decoding else 40, heads=1, scale=math.log(2))
    sk = p.k.shape[1]
    q, k = torch.zeros_like(p.q), torch.zeros_like(p.k)
    q[..., 0], k[..., 0] = 4096, sign * 4096
    q[..., 1], k[..., 1] = 1, 0
    less = torch.tensor(offsets)[torch.arange(sk) * 3 // sk].to(k)
    k[:, :, 0, :, 1] = less[None, :, None]
    p = p.but(q=q, k=k, v=p.v * torch.exp2(max(offsets) - less - 4)[None, :, None, None])
    if decoding:
        k_cache, v_cache = flat(p.k).clone(), p.v.clone()
        out = impl.kvcache(flat(p.q), k_cache, v_cache, p.lam, **p.options(), num_splits=3)
    else:
        out = run(impl, p)[0]
    exact = exact_forward(p)[0]
    error = (out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert float(error.max()) <= 2 * torch.finfo(dtype).eps, float(error.max())
