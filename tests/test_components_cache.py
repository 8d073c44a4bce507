"""Each map's own result from a cache."""

from __future__ import annotations

import pytest
import torch
from support.cache import make_cache
from support.case import Case
from support.data import flat
from support.impls import Impl
from test_components import EVERY_DTYPE, check_components


@pytest.mark.parametrize("num_splits", [0, 1, 5])
@pytest.mark.parametrize(("kind", "sq"), [("plain", 1), ("paged16", 3), ("indexed", 90)])
@EVERY_DTYPE
def test_a_cache(impl: Impl, dtype: torch.dtype, kind: str, sq: int, num_splits: int) -> None:
    """Few rows and many, with new keys; the last sequence has none but these."""
    case = Case(sq=sq, heads=4, heads_k=2, d=64, dv=128, dtype=dtype, causal=True)
    check_cache(impl, case, kind, num_splits)


def check_cache(impl: Impl, case: Case, kind: str, num_splits: int) -> None:
    cache = make_cache(case, impl, kind, [120, 33, 0], [0, 5, 0])
    p, new = cache.problem, min(case.sq, 3)
    k, v = flat(p.k)[:, -new:], p.v[:, -new:]
    mask = {"causal": True, "window_size": case.window, "sink_size": case.sink}
    o, lse = impl.kvcache(
        flat(p.q), cache.k, cache.v, None, k, v, **cache.arguments, **mask, num_splits=num_splits,
        return_components=True,
    )  # fmt: skip
    assert o.shape == (3, case.sq, 4, 2, case.dv) and lse.shape == (3, 4, 2, case.sq)
    for i in range(3):
        check_components(o[i : i + 1], lse[i : i + 1], cache.visible(i, new))
