"""Finite scores of any size: a score and its maximum are rounded in the same way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import run_backward
from support.data import Problem, flat, make_problem, wide
from support.impls import Impl
from torch import Tensor

pytestmark = pytest.mark.needs("large_scores")
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
# One query row, few, many, and more than decoding takes: each has products of its own on a CPU.
ROWS = [1, 5, 20, 70]
# Scores of up to 6e9 where the dtype goes to 65504, and of 1e13 elsewhere.
SIZE = {torch.float16: 28000.0, torch.bfloat16: 1e6, torch.float32: 1e6, torch.float64: 1e6}
LAM = 0.7


def attend(impl: Impl, p: Problem, decoding: bool, lam: float = LAM) -> tuple[Tensor, Tensor]:
    function = impl.kvcache if decoding else impl.func
    return function(flat(p.q), flat(p.k), p.v, lam, **p.options(), return_lse=True)  # type: ignore[no-any-return]


def problem(impl: Impl, dtype: torch.dtype, sq: int, **changes: Any) -> Problem:
    case = Case(sq=sq, sk=130, heads=2, heads_k=1, d=64, dv=64, dtype=dtype)
    return make_problem(case.but(**changes), impl.device)


@DTYPE
@pytest.mark.parametrize("decoding", [False, True], ids=["forward", "decoding"])
@pytest.mark.parametrize("sq", ROWS)
def test_equal_scores_give_the_mean(
    impl: Impl, dtype: torch.dtype, sq: int, decoding: bool
) -> None:
    p = problem(impl, dtype, sq)
    size = SIZE[dtype]
    p = p.but(q=torch.full_like(p.q, size), k=torch.full_like(p.k, size))
    out, lse = attend(impl, p, decoding)
    mean = (1 - LAM) * p.v.double().mean(1, keepdim=True).repeat_interleave(2, 2)
    torch.testing.assert_close(
        out.double(), mean.expand_as(out), rtol=1e-2, atol=4 * torch.finfo(dtype).eps
    )
    score = p.q[0, 0, 0, 0].double().square().sum() * p.softmax_scale()
    torch.testing.assert_close(lse.double(), score.expand_as(lse), rtol=1e-6, atol=0)


def winners(p: Problem) -> tuple[Tensor, Tensor]:
    """The key of each row's greatest score in each map, and by how much it wins, relatively."""
    k = p.k.double().repeat_interleave(p.q.shape[2] // p.k.shape[2], 2)
    scores = torch.einsum("bihcd,bjhcd->cbihj", p.q.double(), k)
    top = scores.topk(2, -1)
    margin = (top.values[..., 0] - top.values[..., 1]) / scores.abs().amax(-1)
    return top.indices[..., 0], margin


@DTYPE
@pytest.mark.parametrize("decoding", [False, True], ids=["forward", "decoding"])
@pytest.mark.parametrize("sq", ROWS)
def test_the_greatest_score_takes_all(
    impl: Impl, dtype: torch.dtype, sq: int, decoding: bool
) -> None:
    p = problem(impl, dtype, sq)
    size = SIZE[dtype] / 8  # of which random numbers are multiples
    p = p.but(q=(p.q.float() * size).to(dtype), k=(p.k.float() * size).to(dtype))
    out, lse = attend(impl, p, decoding)
    keys, margin = winners(p)  # (2, batch, sq, nheads)
    values = p.v.double().repeat_interleave(2, 2)  # (batch, sk, nheads, dv)
    first, second = (
        values.gather(1, row[..., None].expand(-1, -1, -1, p.v.shape[-1])) for row in keys
    )
    clear = (margin > 1e-4).all(0)
    assert float(clear.double().mean()) > 0.9
    want = (first - LAM * second)[clear]
    torch.testing.assert_close(
        out.double()[clear], want, rtol=1e-2, atol=4 * torch.finfo(dtype).eps
    )
    assert bool(out.isfinite().all()) and bool(lse.isfinite().all())


@DTYPE
def test_gradients_stay_finite(impl: Impl, dtype: torch.dtype) -> None:
    """An fp32 LSE no longer holds log(sum), so P is wrong, but it stays within 0 and 1."""
    p = problem(impl, dtype, 70, causal=True)
    size = SIZE[dtype] / 8
    for q, k in [
        ((p.q.float() * size).to(dtype), (p.k.float() * size).to(dtype)),
        (torch.full_like(p.q, size), torch.full_like(p.k, size)),
    ]:
        gradients = run_backward(impl.func, p.but(q=q, k=k, lam=LAM))
        if dtype != torch.float16:  # whose dq and dk are beyond 65504
            assert all(bool(g.isfinite().all()) for g in gradients.values())
        most = (1 + LAM) * p.dout.double().abs().sum(1).unflatten(1, (1, 2)).sum(2)
        assert bool((gradients["v"].double().abs() <= 1.01 * most[:, None]).all())


@DTYPE
@pytest.mark.parametrize("decoding", [False, True], ids=["forward", "decoding"])
@pytest.mark.parametrize("d", [8, 80, 128])
def test_one_key_and_lambda_one_cancel_exactly(
    impl: Impl, dtype: torch.dtype, d: int, decoding: bool
) -> None:
    """P of an only key is 1. A last bit of it left over would be all that the norm sees."""
    case = Case(sq=1, sk=1, d=d, dv=d, dtype=dtype, norm="plain", regime="sharp")
    out, _ = attend(impl, make_problem(case, impl.device), decoding, lam=1.0)
    assert bool((out == 0).all())


@DTYPE
@pytest.mark.parametrize("scale", [1e-44, 1e-46, 5e-324, -1e-46])
def test_a_scale_too_small_for_fp32_is_zero(impl: Impl, dtype: torch.dtype, scale: float) -> None:
    p = problem(impl, dtype, 20, causal=True)
    got, expected = (attend(impl, p.but(scale=s), decoding=False) for s in (scale, 1e-40))
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=8 * torch.finfo(wide(dtype)).eps)
    gradients = run_backward(impl.func, p.but(scale=scale))
    assert all(bool(g.isfinite().all()) for g in gradients.values())
