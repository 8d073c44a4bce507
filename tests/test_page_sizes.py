"""Paged caches of any page size that a backend takes: on CUDA the multiples of 16."""

from __future__ import annotations

import pytest
import torch
from support.cache import make_cache
from support.case import Case, short
from support.impls import Impl
from test_kvcache import check_step

DTYPE = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
PAGE = pytest.mark.parametrize("page", [16, 48, 80, 528])
LENGTHS = [0, 47, 700]


@DTYPE
@PAGE
@pytest.mark.parametrize("new", [0, 1, 20, 70])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_a_step(impl: Impl, dtype: torch.dtype, page: int, new: int, num_splits: int) -> None:
    """70 new tokens cross pages, and are appended before the cache is read."""
    case = Case(sq=max(new, 1), heads=4, heads_k=2, d=64, dv=128, dtype=dtype, causal=True)
    cache = make_cache(case, impl, f"paged{page}", LENGTHS, [0, 9, 100], capacity=1056)
    check_step(impl, cache, new, num_splits=num_splits)


@DTYPE
@PAGE
@pytest.mark.parametrize("filler", [-1, 10**6, 2**31 - 1])
def test_entries_behind_the_keys_are_not_read(
    impl: Impl, dtype: torch.dtype, page: int, filler: int
) -> None:
    case = Case(sq=2, heads=2, heads_k=1, d=32, dv=64, dtype=dtype)
    cache = make_cache(case, impl, f"paged{page}", LENGTHS, capacity=1056)
    for i, length in enumerate(cache.lengths):
        cache.arguments["block_table"][i, -(-(length + 2) // page) :] = filler
    check_step(impl, cache, 2, num_splits=2)


@PAGE
def test_up_to_the_last_slot(impl: Impl, page: int) -> None:
    case = Case(sq=3, heads=2, heads_k=2, d=64, dv=64, dtype=torch.bfloat16, causal=True)
    capacity = 1056 // page * page
    lengths = [capacity - 3, page - 1, 2 * page - 3]
    cache = make_cache(case, impl, f"paged{page}", lengths, capacity=capacity + page - 1)
    check_step(impl, cache, 3)
