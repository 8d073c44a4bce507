"""Wrong rings: refused in words, and no cache is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import Case
from support.data import flat, make_problem
from support.impls import Impl
from support.refusal import refuses
from support.ring import make_rings
from torch import Tensor

pytestmark = pytest.mark.needs("has_ops")


def _int32(values: list[int], impl: Impl) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=impl.device)


def legal(impl: Impl) -> dict[str, Any]:
    """Two KV heads, the second with a ring of 16 + 32 slots, 40 keys, one new token."""
    case = Case(batch=2, sq=1, sk=1, heads=2, heads_k=2, d=32, dv=64, causal=True, window=(24, 0),
                sink=5, streaming=(False, True), dtype=impl.dtypes[-1])  # fmt: skip
    p = make_problem(case, impl.device)
    rings = make_rings(p, 1, 64)
    return {
        "q": flat(p.q), "k_cache": rings.k.zero_(), "v_cache": rings.v.zero_(), "lam": 0.5,
        "k": flat(p.k), "v": p.v, "cache_seqlens": _int32([40, 40], impl), "causal": True,
        "window_size": (24, 0), "sink_size": 5, "streaming_heads": [False, True],
        "k_stream": rings.k_stream.zero_(), "v_stream": rings.v_stream.zero_(),
    }  # fmt: skip


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one of the two": ({"v_stream": None}, ["v_stream", "NoneType"]),
    "the other": ({"k_stream": None}, ["k_stream", "NoneType"]),
    "no k_cache": ({"k_cache": None}, ["k_cache is NoneType", "expected a tensor"]),
    "no v_cache": ({"v_cache": None}, ["v_cache is NoneType", "expected a tensor"]),
    "not causal": ({"causal": False, "sink_size": 0, "streaming_heads": None},
                   ["k_stream", "causal=False", "causal=True"]),
    "no window": ({"window_size": (-1, -1)}, ["k_stream", "window_size[0]", "unbounded"]),
    "no bound": ({"window_size": (2**62, 0)}, ["k_stream", "window_size[0]", "unbounded"]),
    "no streaming head": ({"streaming_heads": [False] * 2}, ["k_stream", "streaming_heads"]),
    "every head streams": ({"streaming_heads": None}, ["k_stream has 1 heads", "2 and 0"]),
    "too few flags": ({"streaming_heads": [True]}, ["streaming_heads has 1 entries", "2 KV heads"]),
    "no lengths": ({"cache_seqlens": None, "k": None, "v": None}, ["cache_seqlens is None"]),
    "a wide window": ({"window_size": (32, 0)}, ["k_stream has 48 slots", "16", "at least 33"]),
    "a huge window": ({"window_size": (2**50, 0)}, ["window_size[0]", "k_stream"]),
    "many sinks": ({"sink_size": 17}, ["k_stream has 48 slots", "32 for sink_size 17"]),
    "too many sinks": ({"sink_size": 200}, ["k_stream has 48 slots", "208 for sink_size 200"]),
    "all sinks": ({"sink_size": 2**62}, ["k_stream", "sink_size too large"]),
}  # fmt: skip
CHANGED = {
    "slots": (lambda t: t[:, :-1], ["k_stream has 47 slots", "multiple of 16"]),
    "batch": (lambda t: t[:1], ["k_stream has shape (1, 48", "batch_cache"]),
    "heads": (lambda t: t.repeat(1, 1, 2, 1), ["streaming_heads has 2 entries", "3 KV heads"]),
    "width": (lambda t: t[..., :-8], ["headdim"]),
    "dtype": (lambda t: t.half() if t.dtype != torch.half else t.float(), ["k_stream has dtype"]),
    "stride": (lambda t: t.mT.contiguous().mT, ["k_stream", "contiguous in their last"]),
    "overlap": (lambda t: t[:, :1].expand_as(t), ["k_stream has shape", "share memory"]),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRONG, *CHANGED])
def test_wrong_rings(impl: Impl, name: str) -> None:
    """Refused in words, before anything is written."""
    right = legal(impl)
    if name in WRONG:
        changes, words = WRONG[name]
    else:
        change, words = CHANGED[name]
        changes = {x: change(right[x]) for x in ("k_stream", "v_stream")}
    wrong = right | changes
    with refuses(*words):
        impl.kvcache(**wrong)
    for cache in ("k_cache", "v_cache", "k_stream", "v_stream"):
        assert not bool(right[cache].any())
    impl.kvcache(**right)  # and the call it was made from is legal


def test_rows_without_keys_need_slots(impl: Impl) -> None:
    """8 rows and one key: the first row's window begins 7 keys before the last one's."""
    right = legal(impl)
    right["q"] = right["q"].expand(-1, 8, -1, -1)
    impl.kvcache(**right)  # 24 + 1 + 7 = 32
    right["q"] = right["q"][:, :1].expand(-1, 9, -1, -1)
    with refuses("k_stream has 48 slots", "at least 33", "query rows"):
        impl.kvcache(**right)


def test_no_pages_without_full_heads(impl: Impl) -> None:
    right = legal(impl)
    right |= {"q": right["q"][:, :, :2], "k": right["k"][:, :, :2], "v": right["v"][:, :, :1]}
    right |= {"k_cache": right["k_cache"][:, :, :0], "v_cache": right["v_cache"][:, :, :0]}
    right["streaming_heads"] = None
    impl.kvcache(**right)
    with refuses("block_table", "k_cache has no heads"):
        impl.kvcache(**right, block_table=_int32([0, 1], impl)[:, None])


def test_gradients_and_versions(impl: Impl) -> None:
    """Autograd knows that a step writes to the rings."""
    right = legal(impl)
    versions = [right[name]._version for name in ("k_stream", "v_stream")]
    impl.kvcache(**right)
    assert [right[name]._version for name in ("k_stream", "v_stream")] == [n + 1 for n in versions]
    right["k_stream"].requires_grad_()
    with refuses("k_stream", "no gradient"):
        impl.kvcache(**right)
    with torch.no_grad():
        impl.kvcache(**right)
