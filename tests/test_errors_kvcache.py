"""Wrong arguments of the KV-cache function; a refused call leaves the caches as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cache import Cache, make_cache, rotary_tables
from support.case import Case
from support.data import flat
from support.impls import Impl
from support.refusal import refuses
from torch import Tensor

pytestmark = pytest.mark.needs("has_ops")
Arguments = dict[str, Any]


def legal_call(impl: Impl, kind: str) -> tuple[Cache, Arguments]:
    """Sequences of 10 and 40 in caches of 64 slots, two new tokens each; d 32, dv 64."""
    case = Case(sq=2, heads=2, heads_k=1, dtype=impl.dtypes[-1], causal=True)
    cache = make_cache(case, impl, kind, [10, 40], capacity=64)
    p = cache.problem
    arguments = {
        "q": flat(p.q),
        "k_cache": cache.k,
        "v_cache": cache.v,
        "lam": 0.5,
        "k": flat(p.k)[:, 50:52],
        "v": p.v[:, 50:52],
        "causal": True,
    }
    return cache, arguments | cache.arguments


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def table(a: Arguments, row: int, column: int, value: int) -> Arguments:
    changed = a["block_table"].clone()
    changed[row, column] = value
    return {"block_table": changed}


VALUES: dict[str, tuple[str, Callable[[Arguments], Arguments], list[str]]] = {
    "negative length": (
        "plain", lambda _: {"cache_seqlens": int32(10, -3)}, ["cache_seqlens", "1", "-3"]),
    "negative int": ("plain", lambda _: {"cache_seqlens": -3}, ["cache_seqlens", "-3"]),
    "length over capacity": (
        "plain", lambda _: {"cache_seqlens": int32(10, 70)}, ["cache_seqlens", "1", "70", "64"]),
    "no room to append": (
        "plain", lambda _: {"cache_seqlens": int32(10, 63)}, ["cache_seqlens", "63", "2", "64"]),
    "no room, int": ("plain", lambda _: {"cache_seqlens": 64}, ["cache_seqlens", "64"]),
    "no room in pages": (
        "paged16", lambda _: {"cache_seqlens": int32(10, 63)}, ["cache_seqlens", "63", "64"]),
    "huge length": (
        "plain", lambda _: {"cache_seqlens": int32(2**31 - 1, 3)}, ["cache_seqlens", "0"]),
    "table entry beyond": (
        "paged16", lambda a: table(a, 1, 2, 10), ["block_table", "1, 2", "10"]),
    "table entry negative": (
        "paged16", lambda a: table(a, 0, 0, -1), ["block_table", "0, 0", "-1"]),
    "batch index beyond": (
        "indexed", lambda _: {"cache_batch_idx": int32(0, 4)}, ["cache_batch_idx", "1", "4"]),
    "batch index negative": (
        "indexed", lambda _: {"cache_batch_idx": int32(-1, 0)}, ["cache_batch_idx", "0", "-1"]),
    "leftpad negative": (
        "plain", lambda _: {"cache_leftpad": int32(-1, 0)}, ["cache_leftpad", "0", "-1"]),
    "rotary tables too short": (
        "plain",
        lambda a: dict(zip(("rotary_cos", "rotary_sin"), rotary_tables(41, 16, a["q"]),
                           strict=True)),
        ["rotary_cos", "41"]),
}  # fmt: skip


@pytest.mark.needs("checks_values")
@pytest.mark.parametrize("name", list(VALUES))
def test_values(impl: Impl, name: str) -> None:
    kind, change, words = VALUES[name]
    _refused(impl, kind, change, words)


SHAPES: dict[str, tuple[str, Callable[[Arguments], Arguments], list[str]]] = {
    "k without v": ("plain", lambda _: {"v": None}, ["k", "v"]),
    "v without k": ("plain", lambda _: {"k": None}, ["k", "v"]),
    "append without lengths": (
        "plain", lambda _: {"cache_seqlens": None}, ["cache_seqlens", "None"]),
    "lengths in int64": (
        "plain", lambda a: {"cache_seqlens": a["cache_seqlens"].long()}, ["cache_seqlens", "long"]),
    "too many lengths": (
        "plain", lambda _: {"cache_seqlens": int32(1, 2, 3)}, ["cache_seqlens", "(3)", "(2)"]),
    "lengths elsewhere": (
        "plain", lambda a: {"cache_seqlens": a["cache_seqlens"].to("meta")},
        ["cache_seqlens", "device"]),
    "lengths of a list": ("plain", lambda _: {"cache_seqlens": [1, 2]}, ["cache_seqlens", "list"]),
    "cache of another dtype": (
        "plain", lambda a: {"k_cache": a["k_cache"].half()}, ["k_cache", "half"]),
    "v cache of another dtype": (
        "plain", lambda a: {"v_cache": a["v_cache"].half()}, ["v_cache", "half"]),
    "new keys of another dtype": ("plain", lambda a: {"k": a["k"].half()}, ["k", "half"]),
    "cache elsewhere": (
        "plain", lambda a: {"k_cache": a["k_cache"].to("meta")}, ["k_cache", "device"]),
    "cache with last stride 2": (
        "plain", lambda a: {"k_cache": torch.stack([a["k_cache"]] * 2, -1)[..., 0]},
        ["k_cache", "stride", "2", "1"]),
    "v cache with last stride 2": (
        "plain", lambda a: {"v_cache": torch.stack([a["v_cache"]] * 2, -1)[..., 0]},
        ["v_cache", "stride", "2", "1"]),
    "caches of different capacity": (
        "plain", lambda a: {"v_cache": a["v_cache"][:, :60]}, ["v_cache", "60", "64"]),
    "cache of another batch": (
        "plain", lambda a: {"k_cache": a["k_cache"][:1], "v_cache": a["v_cache"][:1]},
        ["1", "2", "cache_batch_idx"]),
    "new keys of another batch": (
        "plain", lambda a: {"k": a["k"][:1], "v": a["v"][:1]}, ["k", "(1, ", "(2, "]),
    "new values of another length": ("plain", lambda a: {"v": a["v"][:, :1]}, ["v", "1", "2"]),
    "new keys of another head count": (
        "plain", lambda a: {"k": a["k"].repeat(1, 1, 2, 1), "v": a["v"].repeat(1, 1, 2, 1)},
        ["k", "1", "2"]),
    "page of 24": (
        "paged16",
        lambda a: {n: torch.cat([a[n]] * 2, 1)[:, :24] for n in ("k_cache", "v_cache")},
        ["page", "24", "16"]),
    "page of 8": (
        "paged16", lambda a: {n: a[n][:, :8] for n in ("k_cache", "v_cache")},
        ["page", "8", "16"]),
    "table of another batch": (
        "paged16", lambda a: {"block_table": a["block_table"][:1]}, ["block_table", "(1, 4)", "2"]),
    "table in int64": (
        "paged16", lambda a: {"block_table": a["block_table"].long()}, ["block_table", "long"]),
    "table of one dimension": (
        "paged16", lambda a: {"block_table": a["block_table"][0]}, ["block_table", "(4)"]),
    "table and batch index": (
        "paged16", lambda _: {"cache_batch_idx": int32(0, 1)}, ["cache_batch_idx", "block_table"]),
    "rotary without keys": (
        "plain",
        lambda a: {"k": None, "v": None, "rotary_cos": torch.ones(64, 8).to(a["q"]),
                   "rotary_sin": torch.ones(64, 8).to(a["q"])},
        ["rotary_cos", "k"]),
    "cos without sin": (
        "plain", lambda a: {"rotary_cos": torch.ones(64, 8).to(a["q"])},
        ["rotary_cos", "rotary_sin"]),
    "cos of another dtype": (
        "plain",
        lambda _: {f"rotary_{n}": torch.ones(64, 8, dtype=torch.bfloat16) for n in ("cos", "sin")},
        ["rotary_cos", "bfloat16"]),
    "rotary_dim 24": (
        "plain",
        lambda a: {n: torch.ones(64, 12).to(a["q"]) for n in ("rotary_cos", "rotary_sin")},
        ["rotary_dim", "24", "16"]),
    "rotary_dim above d": (
        "plain",
        lambda a: {n: torch.ones(64, 24).to(a["q"]) for n in ("rotary_cos", "rotary_sin")},
        ["rotary_dim", "48", "32"]),
    "sin of another shape": (
        "plain",
        lambda a: {"rotary_cos": torch.ones(64, 8).to(a["q"]),
                   "rotary_sin": torch.ones(64, 16).to(a["q"])},
        ["rotary_sin", "(64, 16)", "(64, 8)"]),
    "negative splits": ("plain", lambda _: {"num_splits": -1}, ["num_splits", "-1"]),
    "lam of another shape": ("plain", lambda _: {"lam": torch.ones(3)}, ["lam", "(3,)", "(2,)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_and_types(impl: Impl, name: str) -> None:
    kind, change, words = SHAPES[name]
    _refused(impl, kind, change, words)


def _refused(
    impl: Impl, kind: str, change: Callable[[Arguments], Arguments], words: list[str]
) -> None:
    cache, arguments = legal_call(impl, kind)
    changed = {
        name: x.to(impl.device) if isinstance(x, Tensor) and x.device.type != "meta" else x
        for name, x in change(arguments).items()
    }
    before = cache.k.clone(), cache.v.clone()
    with refuses(*words):
        impl.kvcache(**arguments | changed)
    for got, expected in zip((cache.k, cache.v), before, strict=True):
        assert torch.equal(got.nan_to_num(7.0), expected.nan_to_num(7.0))
    impl.kvcache(**arguments)  # and the call it was made from is legal


@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache", "k", "v"])
def test_requires_grad(impl: Impl, name: str) -> None:
    _, arguments = legal_call(impl, "plain")
    arguments[name] = arguments[name].clone().requires_grad_()
    with refuses("no_grad"):
        impl.kvcache(**arguments)
    with torch.no_grad():
        out = impl.kvcache(**arguments)
    assert not out.requires_grad


def test_lambda_that_requires_grad(impl: Impl) -> None:
    _, arguments = legal_call(impl, "plain")
    with refuses("no_grad"):
        impl.kvcache(**arguments | {"lam": torch.tensor(0.5, requires_grad=True)})
