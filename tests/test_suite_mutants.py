"""A test of the suite: break the implementation slightly, and the law must go red.

Each fault wraps the implementation under test from outside; none passes in any dtype's checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.case import DTYPES, REGIMES, Case, short
from support.checks import check_backward, check_forward
from support.data import make_problem, wide
from support.impls import Impl
from torch import Tensor

from diffattn_cuda import reference

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
Function = Callable[..., Any]
CASE = Case(sq=96, sk=96, heads=2, heads_k=1, d=32, dv=64, lam="head")


def scaled_lambda(function: Function, factor: float = 1.01) -> Function:
    def wrong(q: Tensor, k: Tensor, v: Tensor, lam: Any, **kwargs: Any) -> Any:
        return function(q, k, v, lam * factor, **kwargs)

    return wrong


def bf16_lambda(function: Function) -> Function:
    def wrong(q: Tensor, k: Tensor, v: Tensor, lam: Any, **kwargs: Any) -> Any:
        return function(q, k, v, lam.to(torch.bfloat16).to(lam.dtype), **kwargs)

    return wrong


def dropped_key(function: Function, key: int = 47) -> Function:
    def wrong(q: Tensor, k: Tensor, v: Tensor, lam: Any, **kwargs: Any) -> Any:
        kept = [j for j in range(k.shape[1]) if j != key]
        return function(q, k[:, kept], v[:, kept], lam, **kwargs)

    return wrong


def heavy_tile(
    function: Function, factor: float = 1.1, first: int = 32, last: int = 64
) -> Function:
    """Keys first..last of both maps weigh x1.1, as an accumulator rescaled wrongly would have it.

    The maps of all keys and of the tile are the formula's with lambda 0, components swapped for the
    second; a tile's share of a row is exp(LSE of the tile - LSE of the row).
    """

    def wrong(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, **kwargs: Any) -> Any:
        dtype, acc = q.dtype, wide(q.dtype)
        q, k, v = (x.to(acc) for x in (q.unflatten(2, (-1, 2)), k.unflatten(2, (-1, 2)), v))
        outs = []
        exact: Function = reference.diff_flash_attn_func
        for component in (0, 1):
            qc, kc = (x if component == 0 else x.flip(3) for x in (q, k))
            scale = kwargs["softmax_scale"]
            whole, lse = exact(qc, kc, v, 0.0, softmax_scale=scale, return_lse=True)
            tile = (x[:, first:last] for x in (kc, v))
            part, part_lse = exact(qc, *tile, 0.0, softmax_scale=scale, return_lse=True)
            share = torch.exp(part_lse[0] - lse[0]).transpose(1, 2)[..., None]
            outs.append(whole + (factor - 1) * share * part)
        out = (outs[0] - lam.to(acc)[..., None] * outs[1]).to(dtype)
        return (out, lse) if kwargs.get("return_lse") else out

    return wrong


FAULTS = {
    "lambda x1.01": scaled_lambda,
    "lambda in bf16": bf16_lambda,
    "one key dropped": dropped_key,
    "one tile x1.1": heavy_tile,
}


def red(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError as error:
        assert "the law is broken" in str(error) or "LSE off" in str(error)
        return True
    return False


@DTYPE
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_forward_law_goes_red(impl: Impl, dtype: torch.dtype, fault: str) -> None:
    """In at least one regime for 16 bits, in every regime for fp32 and fp64."""
    broken = replace(impl, func=FAULTS[fault](impl.func))
    seen = []
    for regime in REGIMES:
        problem = make_problem(CASE.but(dtype=dtype, regime=regime), impl.device)
        # Near 1 the subtraction cancels most, as it does at the start of training. Both values
        # lie half way between neighbours in bf16.
        problem = problem.but(lam=torch.tensor([0.955, 0.799], dtype=wide(dtype)).to(impl.device))
        check_forward(impl, problem)
        seen.append(red(lambda p=problem: check_forward(broken, p)))  # type: ignore[misc]
    assert any(seen) if dtype in (torch.float16, torch.bfloat16) else all(seen)


def with_gradient(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Function], Function]:
    """The right output, and a wrong gradient of one argument."""

    def wrap(function: Function) -> Function:
        def wrong(q: Tensor, k: Tensor, v: Tensor, lam: Any, **kwargs: Any) -> Any:
            named = {"q": q, "k": k, "v": v, "lam": lam}
            named[name] = named[name].clone()
            named[name].register_hook(change)
            return function(*named.values(), **kwargs)

        return wrong

    return wrap


def tile_times(gradient: Tensor, factor: float = 1.1) -> Tensor:
    changed = gradient.clone()
    changed[:, 32:64] *= factor
    return changed


GRADIENT_FAULTS = {
    "lambda x1.01": scaled_lambda,
    "one key dropped": dropped_key,
    "dq, one tile x1.1": with_gradient("q", tile_times),
    "dk, one tile x1.1": with_gradient("k", tile_times),
    "dv, one tile x1.1": with_gradient("v", tile_times),
    "dk x1.01": with_gradient("k", lambda g: 1.01 * g),
    "dlambda x1.02": with_gradient("lam", lambda g: 1.02 * g),
    "dlambda of the wrong sign": with_gradient("lam", torch.neg),
}


@DTYPE
@pytest.mark.parametrize("fault", list(GRADIENT_FAULTS))
def test_the_backward_law_goes_red(impl: Impl, dtype: torch.dtype, fault: str) -> None:
    broken = replace(impl, func=GRADIENT_FAULTS[fault](impl.func))
    seen = []
    for regime in REGIMES:
        problem = make_problem(CASE.but(dtype=dtype, regime=regime), impl.device)
        problem = problem.but(lam=torch.tensor([0.955, 0.799], dtype=wide(dtype)).to(impl.device))
        check_backward(impl, problem)
        seen.append(red(lambda p=problem: check_backward(broken, p)))  # type: ignore[misc]
    assert any(seen) if dtype in (torch.float16, torch.bfloat16) else all(seen)


def test_a_single_wrong_element_goes_red(impl: Impl) -> None:
    """One row of one head, off by 5 %: a mean over the tensor would not see it."""

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out, lse = impl.func(*args, **kwargs)
        out[1, 90, 1] *= 1.05
        return out, lse

    for dtype in impl.dtypes:
        problem = make_problem(CASE.but(dtype=dtype), impl.device)
        with pytest.raises(AssertionError, match=r"worst row \(1, 90, 1\)"):
            check_forward(replace(impl, func=wrong), problem)
