"""Decoding over a KV cache: append in place, rotary, indices, leftpad, pages, splits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cache import KINDS, Cache, make_cache, rotary_tables, rotate
from support.case import DTYPES, LAMBDAS, Case, pairwise, short
from support.checks import check_answer
from support.data import flat, make_problem
from support.impls import Impl
from torch import Tensor

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
KIND = pytest.mark.parametrize("kind", KINDS)


def same_bits(got: Tensor, expected: Tensor) -> bool:
    return torch.equal(got.isnan(), expected.isnan()) and torch.equal(
        got.nan_to_num(), expected.nan_to_num()
    )


def step(impl: Impl, cache: Cache, new: int, five_d: bool = False, **extra: Any) -> Any:
    """One call that appends `new` tokens to each sequence and returns (out, lse)."""
    p = cache.problem
    arguments = cache.arguments | p.options() | extra
    if new:
        k = torch.stack([p.k[i, n : n + new] for i, n in enumerate(cache.lengths)])
        v = torch.stack([p.v[i, n : n + new] for i, n in enumerate(cache.lengths)])
        arguments |= {"k": k if five_d else flat(k), "v": v}
    q = p.q if five_d else flat(p.q)
    return impl.kvcache(q, cache.k, cache.v, p.lam, **arguments, return_lse=True)


def check_step(impl: Impl, cache: Cache, new: int, **extra: Any) -> None:
    """Output by the law, appended slots as given, every other slot bitwise as before."""
    p = cache.problem
    expected_k, expected_v = cache.k.clone(), cache.v.clone()
    for i, length in enumerate(cache.lengths):
        slots = cache.slots(i, length, length + new)
        expected_k[slots] = flat(p.k)[i, length : length + new]
        expected_v[slots] = p.v[i, length : length + new]
    out, lse = step(impl, cache, new, **extra)
    assert same_bits(cache.k, expected_k) and same_bits(cache.v, expected_v)
    for i in range(len(cache.lengths)):
        check_answer(out[i : i + 1], lse[:, i : i + 1], cache.visible(i, new))


def _everything() -> list[tuple[Case, str, int, bool, int]]:
    rows = pairwise(
        {
            "kind": KINDS,
            "dtype": DTYPES,
            "new": [0, 1, 16, 40],
            "leftpad": [False, True],
            "causal": [False, True],
            "window": [(-1, -1), (30, 0), (-1, 3)],
            "heads": [(1, 1), (2, 1), (4, 2), (16, 2), (3, 3)],
            "shared_k": [False, True],
            "double": [True, False],
            "d": [8, 24, 64, 128],
            "sq": [1, 2, 15, 16, 17, 40, 70],
            "lam": LAMBDAS,
            "norm": ["none", "plain", "affine"],
            "out_scale": [1.0, 0.2],
            "num_splits": [0, 1, 3],
        }
    )
    cases = []
    for seed, row in enumerate(rows):
        heads, heads_k = row.pop("heads")
        dv = row["d"] * (2 if row.pop("double") else 1)
        rest = tuple(row.pop(name) for name in ("kind", "new", "leftpad", "num_splits"))
        cases.append((Case(**row, heads=heads, heads_k=heads_k, dv=dv, seed=seed, batch=3), *rest))
    return cases


@pytest.mark.parametrize(("case", "kind", "new", "leftpad", "num_splits"), _everything(), ids=str)
def test_every_pair_of_options(
    impl: Impl, case: Case, kind: str, new: int, leftpad: bool, num_splits: int
) -> None:
    pads = [0, 9, 33] if leftpad else None
    cache = make_cache(case, impl, kind, [0, 65, 200], pads)
    check_step(impl, cache, new, num_splits=num_splits)


@pytest.mark.parametrize("sq", [1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 70])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
def test_every_query_length(impl: Impl, dtype: torch.dtype, sq: int) -> None:
    case = Case(sq=sq, dtype=dtype, causal=True, heads=4, heads_k=2, d=64, dv=128)
    check_step(impl, make_cache(case, impl, "paged16", [70, 128, 186]), sq)


@DTYPE
@KIND
def test_empty_sequences(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """No cached token and none appended: zeros, LSE -inf, nothing read."""
    cache = make_cache(Case(sq=3, dtype=dtype), impl, kind, [0, 5, 0])
    out, lse = step(impl, cache, 0)
    assert bool((out[[0, 2]] == 0).all()) and bool((lse[:, [0, 2]] == -torch.inf).all())
    check_answer(out[1:2], lse[:, 1:2], cache.visible(1, 0))


@DTYPE
@KIND
@pytest.mark.parametrize("new", [0, 1, 70])
def test_no_queries(impl: Impl, dtype: torch.dtype, kind: str, new: int) -> None:
    """The new keys are appended all the same."""
    cache = make_cache(Case(sq=1, dtype=dtype, heads=4, heads_k=2), impl, kind, [0, 5, 100])
    p = cache.problem
    cache = replace(cache, problem=p.but(q=p.q[:, :0], dout=p.dout[:, :0]))
    check_step(impl, cache, new)


@DTYPE
@KIND
def test_leftpad_reaches_into_the_new_keys(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """One call fills the cache with a batch that is padded on the left."""
    case = Case(sq=40, dtype=dtype, causal=True, heads=4, heads_k=2, norm="affine")
    check_step(impl, make_cache(case, impl, kind, [0, 0, 16, 20], [0, 9, 33, 60]), 40)


@pytest.mark.needs("any_page")
@DTYPE
@pytest.mark.parametrize("page", [1, 3, 8, 24, 48, 528])
@pytest.mark.parametrize("sq", [1, 9, 70])
def test_pages_of_any_size(impl: Impl, dtype: torch.dtype, page: int, sq: int) -> None:
    case = Case(sq=sq, dtype=dtype, causal=True, heads=4, heads_k=2, d=64, dv=128)
    capacity = 528 if page == 528 else 288
    cache = make_cache(case, impl, f"paged{page}", [0, 65, 200], [0, 9, 33], capacity)
    check_step(impl, cache, sq)


@DTYPE
@pytest.mark.parametrize("kind", ["plain", "paged16"])
@pytest.mark.parametrize("num_splits", [2, 3, 7, 16, 64, 128, 2**63 - 1])
def test_splits_agree(impl: Impl, dtype: torch.dtype, kind: str, num_splits: int) -> None:
    """Merged partial softmaxes, empty ones included: a rounding apart, never a value."""
    case = Case(sq=2, dtype=dtype, heads=4, heads_k=2, causal=True, norm="affine", lam="token")
    cache = make_cache(case, impl, kind, [0, 65, 256])
    whole, split = (step(impl, cache, 0, num_splits=n) for n in (1, num_splits))
    for i in range(3):
        check_answer(split[0][i : i + 1], split[1][:, i : i + 1], cache.visible(i, 0))
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(split[0], whole[0], rtol=2 * ulp, atol=8 * ulp)


ROTARY: dict[str, list[Any]] = {
    "dtype": DTYPES,
    "kind": KINDS,
    "interleaved": [True, False],
    "rotary_dim": [16, 32, 64],
    "mask": ["causal", "window", "full"],
}


@pytest.mark.parametrize(list(ROTARY), [tuple(row.values()) for row in pairwise(ROTARY)], ids=short)
def test_rotary(
    impl: Impl, dtype: torch.dtype, kind: str, interleaved: bool, rotary_dim: int, mask: str
) -> None:
    """q and the new k are rotated at their positions; with leftpad positions do not shift."""
    options: dict[str, Any] = {"causal": {"causal": True}, "window": {"window": (12, 0)}}
    case = Case(sq=3, d=64, dv=64, dtype=dtype, **options.get(mask, {}))
    cache = make_cache(case, impl, kind, [0, 31, 100], [0, 0, 50], capacity=128)
    p = cache.problem
    cos, sin = rotary_tables(128, rotary_dim, p.q)
    out, lse = step(impl, cache, 3, rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved)
    for i, length in enumerate(cache.lengths):
        appended = [length, length + 1, length + 2]
        k = rotate(flat(p.k)[i, length : length + 3], appended, cos, sin, interleaved)
        stored = cache.k[cache.slots(i, length, length + 3)]
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(stored, k, rtol=ulp, atol=ulp)
        assert torch.equal(stored[..., rotary_dim:], k[..., rotary_dim:])
        assert torch.equal(cache.v[cache.slots(i, length, length + 3)], p.v[i, length : length + 3])
        rows = [length] * 3 if mask == "full" else appended
        q = rotate(p.q[i], rows, cos, sin, interleaved)
        check_answer(out[i : i + 1], lse[:, i : i + 1], cache.visible(i, 3).but(q=q[None]))


@DTYPE
@KIND
def test_ten_steps_of_decoding_equal_the_forward(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """A prompt of 25, then ten tokens one by one, against the causal forward of 35."""
    case = Case(batch=2, sq=35, sk=35, heads=4, heads_k=2, dtype=dtype, causal=True, lam="token")
    whole = make_problem(case, impl.device)
    cache = make_cache(case, impl, kind, [0, 0], capacity=64)
    cache.k.fill_(torch.nan), cache.v.fill_(torch.nan)
    outs, lses = [], []
    bounds = [0, 25, *range(26, 36)]
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        part = {name: getattr(whole, name)[:, first:last] for name in ("q", "k", "v", "lam")}
        cache.arguments["cache_seqlens"] = torch.tensor([first] * 2, dtype=torch.int32).to(
            impl.device
        )
        out, lse = impl.kvcache(
            flat(part["q"]), cache.k, cache.v, part["lam"], k=flat(part["k"]), v=part["v"],
            causal=True, **cache.arguments, return_lse=True,
        )  # fmt: skip
        outs.append(out)
        lses.append(lse)
    check_answer(torch.cat(outs, 1), torch.cat(lses, -1), whole)


@DTYPE
@KIND
def test_ten_greedy_tokens_equal_the_forward(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    """Token t has q[t], k[t], v[t]; the next is the likeliest by the output so far."""
    case = Case(sq=48, sk=48, heads=4, heads_k=2, d=32, dv=64, dtype=dtype, causal=True)
    words = make_problem(case.but(batch=1, norm="affine", lam="head"), impl.device)
    readout = torch.randn(4 * 64, 48).to(impl.device)
    cache = make_cache(case, impl, kind, [0], capacity=256)
    cache.k.fill_(torch.nan), cache.v.fill_(torch.nan)
    tokens, done = [3, 14, 15, 9, 26], 0
    for _ in range(10):
        whole = words.but(**{name: getattr(words, name)[:, tokens] for name in "qkv"})
        fresh = {name: getattr(whole, name)[:, done:] for name in "qkv"}
        cache.arguments["cache_seqlens"].fill_(done)
        out, lse = impl.kvcache(
            flat(fresh["q"]), cache.k, cache.v, words.lam, k=flat(fresh["k"]), v=fresh["v"],
            **whole.options(), **cache.arguments, return_lse=True,
        )  # fmt: skip
        check_answer(out, lse, whole.but(q=fresh["q"], dout=whole.dout[:, : len(tokens) - done]))
        again = impl.func(flat(whole.q), flat(whole.k), whole.v, words.lam, **whole.options())
        cached, plain = (x[0, -1].flatten().float() @ readout for x in (out, again))
        assert cached.argmax() == plain.argmax()
        done = len(tokens)
        tokens.append(int(cached.argmax()))
    assert len(set(tokens)) > 5  # a sequence that repeats itself would ask little


@DTYPE
def test_cache_seqlens_forms(impl: Impl, dtype: torch.dtype) -> None:
    """An int for all, a tensor, and None for a cache that is full."""
    cache = make_cache(Case(sq=2, dtype=dtype), impl, "plain", [256, 256])
    by_tensor = step(impl, cache, 0)
    for form in (256, None):
        cache.arguments["cache_seqlens"] = form
        got = step(impl, cache, 0)
        assert torch.equal(got[0], by_tensor[0]) and torch.equal(got[1], by_tensor[1])
    cache = make_cache(Case(sq=2, dtype=dtype), impl, "plain", [100, 100])
    cache.arguments["cache_seqlens"] = 100
    check_step(impl, cache, 5)


@DTYPE
def test_five_d_arguments(impl: Impl, dtype: torch.dtype) -> None:
    flat_cache, five_d_cache = (
        make_cache(Case(sq=4, dtype=dtype, causal=True), impl, "paged16", [3, 50]) for _ in "ab"
    )
    expected = step(impl, flat_cache, 4)
    got = step(impl, five_d_cache, 4, five_d=True)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert same_bits(five_d_cache.k, flat_cache.k) and same_bits(five_d_cache.v, flat_cache.v)


@DTYPE
@KIND
def test_append_up_to_the_last_slot(impl: Impl, dtype: torch.dtype, kind: str) -> None:
    cache = make_cache(Case(sq=6, dtype=dtype, causal=True), impl, kind, [250, 250, 250])
    check_step(impl, cache, 6)


@DTYPE
def test_sequences_share_pages(impl: Impl, dtype: torch.dtype) -> None:
    """Prefix sharing: two tables name the same blocks."""
    cache = make_cache(Case(sq=1, dtype=dtype), impl, "paged16", [100, 40])
    cache.arguments["block_table"][1, :2] = cache.arguments["block_table"][0, :2]
    cache.lookup[1, :32] = cache.lookup[0, :32]
    check_step(impl, cache, 0)


@DTYPE
@pytest.mark.parametrize("filler", [-1, 10**6, -(2**31)])
def test_unused_block_table_entries_are_not_read(
    impl: Impl, dtype: torch.dtype, filler: int
) -> None:
    """Servers pad tables with anything: only the blocks a sequence has reached count."""
    cache = make_cache(Case(sq=2, dtype=dtype), impl, "paged16", [0, 15, 100])
    table = cache.arguments["block_table"]
    for i, length in enumerate(cache.lengths):
        table[i, -(-(length + 2) // 16) :] = filler
    check_step(impl, cache, 2)


@DTYPE
def test_kvcache_does_not_modify_its_other_inputs(impl: Impl, dtype: torch.dtype) -> None:
    cache = make_cache(Case(sq=2, dtype=dtype, causal=True), impl, "paged16", [5, 40], [2, 0])
    p = cache.problem
    cos, sin = rotary_tables(256, 16, p.q)
    inputs = [p.q, p.k, p.v, cos, sin, *cache.arguments.values()]
    before = [x.clone() for x in inputs]
    step(impl, cache, 2, rotary_cos=cos, rotary_sin=sin)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@DTYPE
def test_leftpad_hides_everything(impl: Impl, dtype: torch.dtype) -> None:
    """leftpad equal to the length: no visible key, so zeros and -inf."""
    cache = make_cache(Case(sq=1, dtype=dtype), impl, "plain", [20, 20], [20, 3])
    out, lse = step(impl, cache, 0)
    assert bool((out[0] == 0).all()) and bool((lse[:, 0] == -torch.inf).all())
    check_answer(out[1:], lse[:, 1:], cache.visible(1, 0))
