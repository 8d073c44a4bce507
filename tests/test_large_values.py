"""Values near the end of the dtype's range, and λ that is no number."""

from __future__ import annotations

import math

import pytest
import torch
from support.case import DTYPES, Case, short
from support.data import flat, make_problem
from support.impls import Impl

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
DECODING = pytest.mark.parametrize("decoding", [False, True], ids=["forward", "decoding"])
ROWS = pytest.mark.parametrize("sq", [5, 70])  # few, and more than a CPU's decoding takes


@pytest.mark.needs("zero_without_keys")
@DTYPE
@DECODING
@ROWS
@pytest.mark.parametrize("norm", ["none", "affine"])
@pytest.mark.parametrize("lam", [math.nan, math.inf, -math.inf])
def test_a_row_without_keys_is_zero_whatever_lambda_is(
    impl: Impl, dtype: torch.dtype, decoding: bool, sq: int, norm: str, lam: float
) -> None:
    """0 · NaN is NaN: such a row has to be told apart."""
    p = make_problem(Case(sq=sq, sk=3, causal=True, norm=norm, dtype=dtype), impl.device)
    function = impl.kvcache if decoding else impl.func
    out, lse = function(flat(p.q), flat(p.k), p.v, lam, **p.options(), return_lse=True)
    blind = sq - 3  # the first rows, because masks are aligned at the last key
    assert not out[:, :blind].any() and bool((lse[..., :blind] == -math.inf).all())
    assert not out[:, blind:].isfinite().any()


@DTYPE
@DECODING
@ROWS
def test_values_whose_sum_overflows(
    impl: Impl, dtype: torch.dtype, decoding: bool, sq: int
) -> None:
    """What is divided by the softmax's sum at the end becomes inf or NaN, never another number."""
    p = make_problem(Case(sq=sq, sk=130, heads=2, heads_k=1, dtype=dtype), impl.device)
    p = p.but(v=torch.full_like(p.v, torch.finfo(dtype).max / 3))
    function = impl.kvcache if decoding else impl.func
    out = function(flat(p.q), flat(p.k), p.v, 0.5, **p.options()).double()
    expected = p.v.double().amax() / 2
    right = (out - expected).abs() <= 0.01 * expected
    assert bool((right | ~out.isfinite()).all())
    if dtype == torch.float16 or (impl.divides_first and not decoding):
        assert bool(right.all())
