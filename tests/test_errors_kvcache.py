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


def rotary(a: Arguments, positions: int) -> Arguments:
    cos, sin = rotary_tables(positions, 16, a["q"])
    return {"rotary_cos": cos, "rotary_sin": sin}


def new_keys(a: Arguments, count: int) -> Arguments:
    return {name: a[name][:, :count] for name in ("k", "v")}


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
    "more sequences than caches, their length an int": (
        "plain",
        lambda a: {"q": a["q"][:1].expand(2**48, -1, -1, -1), "cache_seqlens": 5}
        | {"k": None, "v": None},
        ["k_cache", "281474976710656"]),
    "batch index beyond": (
        "indexed", lambda _: {"cache_batch_idx": int32(0, 4)}, ["cache_batch_idx", "1", "4"]),
    "batch index negative": (
        "indexed", lambda _: {"cache_batch_idx": int32(-1, 0)}, ["cache_batch_idx", "0", "-1"]),
    "leftpad negative": (
        "plain", lambda _: {"cache_leftpad": int32(-1, 0)}, ["cache_leftpad", "0", "-1"]),
    "leftpad beyond the new keys": (
        "plain", lambda _: {"cache_leftpad": int32(0, 43)}, ["cache_leftpad", "1", "43", "42"]),
    "table entry of a new key that leftpad hides": (
        "paged16",
        lambda a: table(a, 1, 2, -1) | {"cache_leftpad": int32(0, 42)},
        ["block_table", "1, 2", "-1"]),
    "rotary tables too short": (
        "plain",
        lambda a: rotary(a, 41),
        ["rotary_cos", "41", "42"]),
    "rotary tables too short for the queries": (
        "plain",
        lambda a: rotary(a, 41) | {n: a[n][:, :1] for n in ("k", "v")},
        ["rotary_cos", "41", "42"]),
    "rotary tables too short for queries alone": (
        "plain",
        lambda a: rotary(a, 41) | {n: a[n][:, :0] for n in ("k", "v")},
        ["rotary_cos", "41", "42"]),
    "rotary tables too short for queries of one position": (
        "plain",
        lambda a: rotary(a, 40) | {n: a[n][:, :0] for n in ("k", "v")} | {"causal": False},
        ["rotary_cos", "40", "41"]),
    "two sequences append to one row": (
        "indexed", lambda a: {"cache_batch_idx": a["cache_batch_idx"][:1].expand(2).contiguous()},
        ["cache_batch_idx[0]", "cache_batch_idx[1]", "append"]),
    "two sequences append to one page": (
        "paged16", lambda a: table(a, 1, 2, int(a["block_table"][0, 0])),
        ["block_table[0, 0]", "block_table[1, 2]", "append"]),
    "one page twice in a sequence": (
        "paged16",
        lambda a: table(a, 1, 3, int(a["block_table"][1, 2])) | {"cache_seqlens": int32(10, 47)},
        ["block_table[1, 2]", "block_table[1, 3]", "append"]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(VALUES))
def test_values(impl: Impl, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFATTN_CHECK", "1")  # the CPU looks in any case
    kind, change, words = VALUES[name]
    _refused(impl, kind, change, words)


ENOUGH: dict[str, tuple[int, Callable[[Arguments], Arguments]]] = {
    "all rows at one position": (41, lambda a: new_keys(a, 1) | {"causal": False}),
    "a row each": (42, lambda a: new_keys(a, 1)),
    "no new keys": (42, lambda a: new_keys(a, 0)),
    "no new keys, one position": (41, lambda a: new_keys(a, 0) | {"causal": False}),
    "no rows": (41, lambda a: new_keys(a, 1) | {"q": a["q"][:, :0]}),
    "neither": (0, lambda a: new_keys(a, 0) | {"q": a["q"][:, :0]}),
}


@pytest.mark.parametrize("name", list(ENOUGH))
def test_as_many_positions_as_are_read_suffice(
    impl: Impl, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFATTN_CHECK", "1")
    positions, change = ENOUGH[name]
    _, arguments = legal_call(impl, "plain")
    arguments |= change(arguments)
    impl.kvcache(**arguments | rotary(arguments, positions))
    if positions:
        with refuses("rotary_cos", str(positions - 1), str(positions)):
            impl.kvcache(**arguments | rotary(arguments, positions - 1))


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
    "row of the cache shared": (
        "plain", lambda a: {"k_cache": a["k_cache"][:1].expand(2, -1, -1, -1)},
        ["k_cache", "strides", "share"]),
    "slots of the cache shared": (
        "plain", lambda a: {"v_cache": a["v_cache"][:, :1].expand(-1, 64, -1, -1)},
        ["v_cache", "strides", "share"]),
    "heads of the cache overlap": (
        "plain", lambda a: {"k_cache": a["k_cache"].as_strided((2, 64, 2, 32), (4096, 64, 16, 1))},
        ["k_cache", "strides", "share"]),
    "cache of another head dim": (
        "plain", lambda a: {"k_cache": a["k_cache"][..., :24].clone()}, ["k_cache has headdim 24"]),
    "v cache of another head dim": (
        "plain", lambda a: {"v_cache": a["v_cache"][..., :24].clone()}, ["v_cache has headdim 24"]),
    "more new keys than slots": (
        "plain", lambda a: {n: a[n].repeat_interleave(40, 1) for n in ("k", "v")},
        ["k has 80 rows, the cache holds 64"]),
    "cache of another batch": (
        "plain", lambda a: {"k_cache": a["k_cache"][:1], "v_cache": a["v_cache"][:1]},
        ["1", "2", "cache_batch_idx"]),
    "new keys of another batch": (
        "plain", lambda a: {"k": a["k"][:1], "v": a["v"][:1]}, ["k", "(1, ", "(2, "]),
    "new values of another length": ("plain", lambda a: {"v": a["v"][:, :1]}, ["v", "1", "2"]),
    "new keys of another head count": (
        "plain", lambda a: {"k": a["k"].repeat(1, 1, 2, 1), "v": a["v"].repeat(1, 1, 2, 1)},
        ["k", "1", "2"]),
    "page of nothing": (
        "paged16", lambda a: {n: a[n][:, :0] for n in ("k_cache", "v_cache")}, ["page_size", "0"]),
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
        lambda _: {f"rotary_{n}": torch.ones(64, 8, dtype=torch.float16) for n in ("cos", "sin")},
        ["rotary_cos", "half"]),
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


CUDA_PAGES: dict[int, Callable[[Tensor], Tensor]] = {
    24: lambda cache: torch.cat([cache] * 2, 1)[:, :24],
    8: lambda cache: cache[:, :8],
}


@pytest.mark.needs("clamps_values")
@pytest.mark.parametrize("size", list(CUDA_PAGES))
def test_page_sizes_that_cuda_refuses(impl: Impl, size: int) -> None:
    change = CUDA_PAGES[size]
    _refused(impl, "paged16", lambda a: {n: change(a[n]) for n in ("k_cache", "v_cache")},
             ["page_size", str(size), "16"])  # fmt: skip


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
    with refuses("no_grad", f"of {name}:"):
        impl.kvcache(**arguments)
    with torch.no_grad():
        out = impl.kvcache(**arguments)
    assert not out.requires_grad


def test_lambda_that_requires_grad(impl: Impl) -> None:
    _, arguments = legal_call(impl, "plain")
    with refuses("no_grad", "of lam:"):
        impl.kvcache(**arguments | {"lam": torch.tensor(0.5, requires_grad=True)})
