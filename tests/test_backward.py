"""Gradients under the law, gradcheck in fp64, and awkward output gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, REGIMES, Case, pairwise, pairwise_cases, short
from support.checks import check_backward, leaves, run_backward
from support.data import flat, make_problem
from support.impls import HALF, Impl
from torch import Tensor

FP64 = pytest.mark.parametrize("dtype", [torch.float64], ids=short)


def _everything() -> list[Case]:
    cases = pairwise_cases(
        20_000,
        sq=[1, 15, 16, 63, 65, 129, 300],
        sk=[1, 17, 64, 65, 127, 300],
        d=[8, 24, 32, 40, 64, 96, 128],
        window=[(-1, -1), (16, 0), (0, 0), (3, 5), (-1, 4), (40, -1)],
        heads=[(1, 1), (2, 1), (2, 2), (4, 2), (3, 1)],
        batch=[1, 2],
    )
    # With a norm 1 - 1 = 0, then times 1/sqrt(eps), is rounding noise, magnified.
    return [x.but(lam="scalar") if x.lam == "one" and x.norm != "none" else x for x in cases]


@pytest.mark.parametrize("case", _everything(), ids=str)
def test_every_pair_of_options(impl: Impl, case: Case) -> None:
    check_backward(impl, make_problem(case, impl.device))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("norm", ["none", "affine"])
@pytest.mark.parametrize("shape", [(64, 128), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_regimes(
    impl: Impl, dtype: torch.dtype, shape: tuple[int, int], norm: str, regime: str
) -> None:
    case = Case(batch=1, sq=130, sk=130, d=shape[0], dv=shape[1], dtype=dtype, norm=norm)
    case = case.but(causal=True, regime=regime, shared_k=shape[0] == shape[1], lam="token")
    check_backward(impl, make_problem(case, impl.device))


@pytest.mark.parametrize("lam", ["scalar", "head", "token", "narrow"])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_lambda_gradient_has_lambdas_shape_and_dtype(
    impl: Impl, dtype: torch.dtype, lam: str
) -> None:
    """fp32 for an fp32 lambda, whatever q is: the bf16 cast of the peers turns -622.58 to -620."""
    problem = make_problem(Case(sq=40, sk=40, heads=3, dtype=dtype, lam=lam), impl.device)
    assert isinstance(problem.lam, Tensor)
    gradient = run_backward(impl.func, problem)["lam"]
    assert gradient.shape == problem.lam.shape and gradient.dtype == problem.lam.dtype
    check_backward(impl, problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("kind", ["stride0", "transposed", "sliced", "channels"])
def test_awkward_output_gradients(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """dO as autograd makes it: .sum() broadcasts one number, a transpose or a slice strides it."""
    problem = make_problem(Case(sq=33, sk=40, dtype=dtype, causal=True), impl.device)
    b, s, h, dv = problem.dout.shape
    douts = {
        "stride0": problem.dout[:1, :1, :1, :1].expand(b, s, h, dv),
        "transposed": problem.dout.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "sliced": torch.cat([problem.dout, problem.dout.nan_to_num() * torch.nan], -1)[..., :dv],
        "channels": problem.dout.transpose(1, 2).contiguous().transpose(1, 2),
    }
    awkward = run_backward(impl.func, problem.but(dout=douts[kind]))
    plain = run_backward(impl.func, problem.but(dout=douts[kind].contiguous()))
    for name, gradient in awkward.items():
        assert torch.equal(gradient, plain[name]), name


@pytest.mark.parametrize("wanted", ["q", "k", "v", "lam", "norm_weight"])
def test_one_gradient_alone_equals_that_of_all(impl: Impl, wanted: str) -> None:
    dtype = impl.dtypes[-1]
    case = Case(sq=33, sk=40, dtype=dtype, norm="affine", lam="token", causal=True)
    problem = make_problem(case, impl.device)
    everything = run_backward(impl.func, problem)
    leaf = getattr(problem, wanted).clone().requires_grad_()
    p = problem.but(**{wanted: leaf})
    out = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options())
    (alone,) = torch.autograd.grad(out, leaf, problem.dout)
    assert torch.equal(alone, everything[wanted])


def test_no_gradient_is_recorded_when_none_is_wanted(impl: Impl) -> None:
    problem = make_problem(Case(dtype=impl.dtypes[0]), impl.device)
    out, lse = impl.func(flat(problem.q), flat(problem.k), problem.v, 0.5, return_lse=True)
    assert not out.requires_grad and not lse.requires_grad
    p, _ = leaves(problem)
    with torch.no_grad():
        assert not impl.func(flat(p.q), flat(p.k), p.v, 0.5).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
def test_deterministic_backward_obeys_the_law(impl: Impl, dtype: torch.dtype) -> None:
    case = Case(sq=129, sk=200, dtype=dtype, norm="affine", lam="head", causal=True)
    check_backward(impl, make_problem(case, impl.device), deterministic=True)


@pytest.mark.parametrize("dtype", HALF, ids=short)
def test_keys_that_do_not_exist_have_no_share(impl: Impl, dtype: torch.dtype) -> None:
    """Logits around -288: to a key of zeros, exp(0 - LSE) would give infinity.

    In fp32 the rounding of one such logit decides a row, and the law does not pool that far.
    """
    problem = make_problem(Case(batch=1, sq=40, sk=70, d=64, dv=128, dtype=dtype), impl.device)
    check_backward(impl, problem.but(q=problem.q + 6, k=problem.k - 6))


@pytest.mark.parametrize("dtype", HALF, ids=short)
def test_norm_weight_over_many_rows(impl: Impl, dtype: torch.dtype) -> None:
    """More parts of its gradient than threads add up in one go."""
    case = Case(batch=1, sq=650, sk=8, heads=8, d=64, dv=128, dtype=dtype, norm="affine")
    check_backward(impl, make_problem(case, impl.device))


def _gradcheck_cases() -> list[Case]:
    rows = pairwise(
        {
            "lam": ["scalar", "head", "token", "float", "zero", "negative"],
            "norm": ["none", "plain", "affine"],
            "causal": [False, True],
            "window": [(-1, -1), (1, 1), (2, -1)],
            "shared_k": [False, True],
            "heads": [(1, 1), (2, 1), (2, 2)],
            "double": [True, False],
            "lengths": [(4, 4), (5, 3), (3, 6)],
            "out_scale": [1.0, 0.3],
            "scale": [None, 0.5],
        }
    )
    cases = []
    for seed, row in enumerate(rows):
        (heads, heads_k), (sq, sk) = row.pop("heads"), row.pop("lengths")
        dv = 16 if row.pop("double") else 8
        cases.append(Case(**row, heads=heads, heads_k=heads_k, sq=sq, sk=sk, d=8, dv=dv, batch=1,
                          dtype=torch.float64, seed=seed))  # fmt: skip
    sinks = Case(batch=1, sq=6, sk=7, heads=4, heads_k=2, d=8, dv=16, causal=True, sink=2,
                 window=(1, 0), lam="head", norm="affine", dtype=torch.float64)  # fmt: skip
    return [*cases, sinks, sinks.but(streaming=(False, True), norm="none", lam="token")]


@pytest.mark.parametrize("case", _gradcheck_cases(), ids=str)
def test_gradcheck(impl: Impl, case: Case) -> None:
    """Finite differences in fp64, of the output and of the LSE."""
    problem, named = leaves(make_problem(case, impl.device))
    # A short row is normalised with a slope up to 1/sqrt(eps): too steep for differences.
    problem = problem.but(norm_eps=None if problem.norm_eps is None else 1e-2)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        p = problem.but(**dict(zip(named, tensors, strict=True)))
        out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
        # -inf - -inf is no finite difference: rows without a key have a constant LSE.
        return out, lse[lse.detach().isfinite()]

    assert torch.autograd.gradcheck(function, tuple(named.values()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("only", ["q", "k", "v", "lam", "norm_weight"])
@pytest.mark.parametrize("dtype", HALF, ids=short)
def test_finite_differences_in_16_bits(impl: Impl, dtype: torch.dtype, only: str) -> None:
    """A step up and one down along the gradient, long enough to outweigh rounding.

    λ's is counted in units of rounding: a kernel may round P1 − λ·P2 as a whole, of which λ changes
    only a part.
    """
    case = Case(batch=1, sq=5, sk=6, d=8, dv=16, dtype=dtype, norm="affine", lam="token", lse=True)
    p = make_problem(case.but(causal=True), impl.device).but(norm_eps=0.3)
    gradient = run_backward(impl.func, p)[only]

    def value(x: Tensor) -> float:
        moved = p.but(**{only: x})
        out, lse = impl.func(flat(moved.q), flat(moved.k), moved.v, moved.lam, **moved.options(),
                             return_lse=True)  # fmt: skip
        assert p.dlse is not None
        return float((out.double() * p.dout).sum() + (lse.double() * p.dlse).sum())

    x = getattr(p, only)
    length = max(0.015, 15 * torch.finfo(dtype).eps) if only == "lam" else 0.015
    step = length * x.norm() / gradient.norm() * gradient
    up, down = (x + step).to(x.dtype), (x - step).to(x.dtype)
    slope = float((gradient.double() * (up.double() - down.double())).sum())
    assert value(up) - value(down) == pytest.approx(slope, rel=4 * torch.finfo(dtype).eps)


@FP64
@pytest.mark.parametrize("only", ["q", "k", "v", "lam", "norm_weight"])
def test_gradcheck_of_one_argument(impl: Impl, dtype: torch.dtype, only: str) -> None:
    case = Case(batch=1, sq=4, sk=5, d=8, dv=16, dtype=dtype, norm="affine", lam="token")
    problem = make_problem(case, impl.device).but(norm_eps=1e-2)
    leaf = getattr(problem, only).clone().requires_grad_()

    def function(x: Tensor) -> Any:
        p = problem.but(**{only: x})
        return impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)

    assert torch.autograd.gradcheck(function, (leaf,), atol=1e-6, rtol=1e-5)


@FP64
def test_gradcheck_of_lse_alone(impl: Impl, dtype: torch.dtype) -> None:
    problem, named = leaves(make_problem(Case(batch=1, sq=4, sk=6, d=8, dv=8, dtype=dtype)))

    def function(q: Tensor, k: Tensor) -> Tensor:
        lse: Tensor = impl.func(flat(q), flat(k), problem.v, 0.5, causal=True, return_lse=True)[1]
        return lse

    assert torch.autograd.gradcheck(function, (named["q"], named["k"]))


@pytest.mark.parametrize("norm", ["none", "affine"])
@pytest.mark.parametrize("sq", [33, 100])  # or rows without keys
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_lse_gradient_obeys_the_law(impl: Impl, dtype: torch.dtype, sq: int, norm: str) -> None:
    case = Case(sq=sq, sk=65, dtype=dtype, causal=True, lam="token", norm=norm, lse=True)
    check_backward(impl, make_problem(case, impl.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_unused_lse_and_zero_lse_gradient_agree(impl: Impl, dtype: torch.dtype) -> None:
    problem = make_problem(Case(sq=33, sk=65, dtype=dtype, causal=True), impl.device)
    plain = run_backward(impl.func, problem)
    p, named = leaves(problem)
    out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
    got = torch.autograd.grad((out, lse), list(named.values()),
                              (problem.dout, torch.zeros_like(lse)))  # fmt: skip
    for name, gradient in zip(named, got, strict=True):
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=0)
