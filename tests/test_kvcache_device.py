"""Decoding where only the device knows lengths, indices and pages.

Whatever they hold, nothing outside the cache is touched, and keys that cannot be found are masked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.cache import KINDS, Cache, make_cache, rotary_tables
from support.case import Case, short
from support.checks import check_answer
from support.data import Problem, flat
from support.impls import HALF, Impl
from support.refusal import refuses
from torch import Tensor

pytestmark = pytest.mark.needs("clamps_values")
DTYPE = pytest.mark.parametrize("dtype", HALF, ids=short)
BAD_PAGES = pytest.mark.parametrize("page", [-1, 10**6, -(2**31), 2**31 - 1])


def call(impl: Impl, cache: Cache, new: int = 0, **extra: Any) -> tuple[Tensor, Tensor]:
    """Appends `new` tokens, those that follow the lengths of `cache`, whatever the call says."""
    p = cache.problem
    arguments = cache.arguments | p.options() | extra
    if new:
        arguments |= {
            "k": torch.stack([flat(p.k)[i, n : n + new] for i, n in enumerate(cache.lengths)]),
            "v": torch.stack([p.v[i, n : n + new] for i, n in enumerate(cache.lengths)]),
        }
    return impl.kvcache(flat(p.q), cache.k, cache.v, p.lam, **arguments, return_lse=True)


def bits(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().view(torch.int16 if t.element_size() == 2 else torch.int32) for t in tensors]


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bits(*a), bits(*b), strict=True))


def without(problem: Problem, hidden: list[int]) -> Problem:
    """The problem with some of its keys gone; for masks that do not count keys."""
    kept = [j for j in range(problem.k.shape[1]) if j not in hidden]
    return problem.but(k=problem.k[:, kept], v=problem.v[:, kept])


@DTYPE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("new", [0, 2])
def test_lengths_are_clamped(
    impl: Impl, dtype: torch.dtype, kind: str, causal: bool, new: int
) -> None:
    """Below zero is none, above the capacity is all."""
    case = Case(sq=3, dtype=dtype, heads=4, heads_k=2, causal=causal)
    cache = make_cache(case, impl, kind, [256, 0, 40])
    k = torch.randn(3, new, 4, case.d).to(cache.k)
    v = torch.randn(3, new, 2, case.dv).to(cache.v)
    expected = call(impl, cache, k=k, v=v)
    before = bits(cache.k, cache.v)  # the calls below append the same, where there is a slot
    for wrong in ([257, -1, 40], [2**31 - 1, -(2**31), 40]):
        cache.arguments["cache_seqlens"].copy_(torch.tensor(wrong))
        assert same_bits(call(impl, cache, k=k, v=v), expected)
        assert same_bits((cache.k, cache.v), tuple(before))


@DTYPE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [10, 70])
def test_tokens_without_a_slot_are_dropped(
    impl: Impl, dtype: torch.dtype, kind: str, new: int
) -> None:
    """Those that fit are written and seen, and no other slot is touched."""
    case = Case(sq=2, dtype=dtype, heads=2, heads_k=1, causal=True)
    cache = make_cache(case, impl, kind, [250, 256])
    fits = [6, 0]
    k = torch.randn(2, new, 2, case.d).to(cache.k)
    v = torch.randn(2, new, 1, case.dv).to(cache.v)
    expected_k, expected_v = cache.k.clone(), cache.v.clone()
    slots = cache.slots(0, 250, 256)
    expected_k[slots], expected_v[slots] = k[0, :6], v[0, :6]
    out, lse = call(impl, cache, k=k, v=v)
    assert same_bits((cache.k, cache.v), (expected_k, expected_v))
    for i in range(2):
        check_answer(out[i : i + 1], lse[:, i : i + 1], cache.visible(i, fits[i]))


@DTYPE
@BAD_PAGES
@pytest.mark.parametrize("num_splits", [1, 3])
def test_pages_that_do_not_exist_are_masked(
    impl: Impl, dtype: torch.dtype, page: int, num_splits: int
) -> None:
    """Of the new tokens too: those that belong there are written nowhere."""
    cache = make_cache(Case(sq=2, dtype=dtype, heads=4, heads_k=2), impl, "paged16", [100, 39, 14])
    p, table = cache.problem, cache.arguments["block_table"]
    bad = {0: 3, 1: 2, 2: 0}  # amid the old keys; old and new; all of a sequence
    for i, n in bad.items():
        table[i, n] = page
    expected_k, expected_v = cache.k.clone(), cache.v.clone()
    slots = cache.slots(0, 100, 102)
    expected_k[slots], expected_v[slots] = flat(p.k)[0, 100:102], p.v[0, 100:102]
    out, lse = call(impl, cache, 2, num_splits=num_splits)
    assert same_bits((cache.k, cache.v), (expected_k, expected_v))
    for i, n in bad.items():
        seen = without(cache.visible(i, 2), list(range(16 * n, 16 * n + 16)))
        check_answer(out[i : i + 1], lse[:, i : i + 1], seen)


@DTYPE
@pytest.mark.parametrize("index", [-1, 5, 2**31 - 1, -(2**31)])
def test_rows_that_do_not_exist_have_no_keys(impl: Impl, dtype: torch.dtype, index: int) -> None:
    case = Case(sq=2, dtype=dtype, causal=True)
    cache = make_cache(case, impl, "indexed", [100, 40, 7])
    cache.arguments["cache_batch_idx"][1] = index
    p, expected_k, expected_v = cache.problem, cache.k.clone(), cache.v.clone()
    for i in (0, 2):
        slots = cache.slots(i, cache.lengths[i], cache.lengths[i] + 2)
        expected_k[slots] = flat(p.k)[i, cache.lengths[i] : cache.lengths[i] + 2]
        expected_v[slots] = p.v[i, cache.lengths[i] : cache.lengths[i] + 2]
    out, lse = call(impl, cache, 2)
    assert same_bits((cache.k, cache.v), (expected_k, expected_v))
    assert bool((out[1] == 0).all()) and bool((lse[:, 1] == -torch.inf).all())
    for i in (0, 2):
        check_answer(out[i : i + 1], lse[:, i : i + 1], cache.visible(i, 2))


@DTYPE
def test_leftpad_is_clamped(impl: Impl, dtype: torch.dtype) -> None:
    cache = make_cache(Case(sq=1, dtype=dtype), impl, "paged16", [20, 100, 33], [0, 100, 7])
    expected = call(impl, cache)
    cache.arguments["cache_leftpad"].copy_(torch.tensor([-(2**31), 2**31 - 1, 7]))
    assert same_bits(call(impl, cache), expected)


@DTYPE
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("new", [3, 70])
def test_positions_beyond_the_tables_use_their_last(
    impl: Impl, dtype: torch.dtype, interleaved: bool, new: int
) -> None:
    case = Case(sq=3, d=32, dtype=dtype, causal=True)
    short_cache, long_cache = (make_cache(case, impl, "paged64", [100, 31]) for _ in "ab")
    cos, sin = rotary_tables(256, 32, short_cache.problem.q)
    cos[101:], sin[101:] = cos[100], sin[100]
    rotary = {"rotary_interleaved": interleaved}
    expected = call(impl, long_cache, new, rotary_cos=cos, rotary_sin=sin, **rotary)
    cos, sin = cos[:101].clone(), sin[:101].clone()
    got = call(impl, short_cache, new, rotary_cos=cos, rotary_sin=sin, **rotary)
    assert same_bits(got, expected) and same_bits((short_cache.k,), (long_cache.k,))


@DTYPE
@pytest.mark.parametrize("interleaved", [True, False])
def test_queries_alone_beyond_the_tables_use_their_last(
    impl: Impl, dtype: torch.dtype, interleaved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k of no rows is no k to rotate, but q is rotated. Asked to look, the call says what lacks."""
    case = Case(batch=2, sq=3, d=32, dtype=dtype, causal=True)
    cache = make_cache(case, impl, "paged64", [100, 31])
    p = cache.problem
    cos, sin = rotary_tables(256, 32, p.q)
    cos[101:], sin[101:] = cos[100], sin[100]
    nothing: dict[str, Any] = {
        "k": flat(p.k)[:, :0],
        "v": p.v[:, :0],
        "rotary_interleaved": interleaved,
    }
    expected = call(impl, cache, rotary_cos=cos, rotary_sin=sin, **nothing)
    short_tables: dict[str, Any] = {
        "rotary_cos": cos[:101].clone(),
        "rotary_sin": sin[:101].clone(),
    }
    assert same_bits(call(impl, cache, **short_tables, **nothing), expected)
    monkeypatch.setenv("DIFFATTN_CHECK", "1")
    with refuses("rotary_cos", "101", "103"):
        call(impl, cache, **short_tables, **nothing)


def rotated(
    x: Tensor, first: int, step: int, cos: Tensor, sin: Tensor, interleaved: bool
) -> Tensor:
    """x (rows, .., d) rotated by separate operations in fp32, row t to position first + step·t."""
    half = cos.shape[1]
    pairs = torch.arange(half)
    a, b = (2 * pairs, 2 * pairs + 1) if interleaved else (pairs, pairs + half)
    out = x.clone()
    for t in range(x.shape[0]):
        c, s = cos[first + step * t].float(), sin[first + step * t].float()
        one, other = x[t, ..., a].float(), x[t, ..., b].float()
        out[t, ..., a] = (one * c - other * s).to(x.dtype)
        out[t, ..., b] = (other * c + one * s).to(x.dtype)
    return out


@DTYPE
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("rotary_dim", [16, 48, 64])
@pytest.mark.parametrize("new", [1, 5, 70])
@pytest.mark.parametrize("causal", [False, True])
def test_rotary_equals_rotating_before_to_the_bit(
    impl: Impl, dtype: torch.dtype, interleaved: bool, rotary_dim: int, new: int, causal: bool
) -> None:
    case = Case(sq=5, d=64, dv=128, dtype=dtype, causal=causal, heads=4, heads_k=2)
    together, apart = (make_cache(case, impl, "paged16", [31, 180]) for _ in "ab")
    cos, sin = rotary_tables(256, rotary_dim, together.problem.q)
    p = apart.problem
    q, k = p.q.clone(), p.k.clone()
    for i, n in enumerate(apart.lengths):
        q[i] = rotated(p.q[i], n, int(causal), cos, sin, interleaved)
        k[i, n : n + new] = rotated(p.k[i, n : n + new], n, 1, cos, sin, interleaved)
    apart = replace(apart, problem=p.but(q=q, k=k))
    rotary = {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": interleaved}
    got, expected = call(impl, together, new, **rotary), call(impl, apart, new)
    assert same_bits((together.k, together.v), (apart.k, apart.v)) and same_bits(got, expected)


@DTYPE
@pytest.mark.parametrize("num_splits", [1, 2, 5])
@pytest.mark.parametrize("sq", [1, 9])
def test_the_batch_around_a_sequence_changes_no_bit(
    impl: Impl, dtype: torch.dtype, num_splits: int, sq: int
) -> None:
    case = Case(sq=sq, dtype=dtype, heads=8, heads_k=2, d=64, dv=128, causal=True, norm="affine")
    whole = make_cache(case, impl, "paged16", [200, 0, 131])
    out, lse = call(impl, whole, 2, num_splits=num_splits)
    for i in range(3):
        cache = make_cache(case, impl, "paged16", [200, 0, 131])
        row = slice(i, i + 1)
        p = cache.problem
        alone = p.but(q=p.q[row], k=p.k[row], v=p.v[row], dout=p.dout[row])
        arguments = {name: t[row] for name, t in cache.arguments.items()}
        cache = replace(cache, problem=alone, lengths=[cache.lengths[i]], arguments=arguments)
        assert same_bits(call(impl, cache, 2, num_splits=num_splits), (out[row], lse[:, row]))


@DTYPE
@pytest.mark.parametrize("window", [(-1, -1), (20, 0), (0, 0)])
@pytest.mark.parametrize("sq", [1, 65])
def test_append_reaches_every_new_token(
    impl: Impl, dtype: torch.dtype, window: tuple[int, int], sq: int
) -> None:
    """Those that no query sees, and with splits that have no keys."""
    case = Case(sq=sq, dtype=dtype, heads=2, heads_k=2, window=window)
    cache = make_cache(case, impl, "paged16", [0, 100, 190])
    p = cache.problem
    for num_splits in (1, 4):
        call(impl, cache, 64, num_splits=num_splits)
        for i, n in enumerate(cache.lengths):
            slots = cache.slots(i, n, n + 64)
            assert same_bits((cache.k[slots],), (flat(p.k)[i, n : n + 64],))
            assert same_bits((cache.v[slots],), (p.v[i, n : n + 64],))
            cache.k[slots], cache.v[slots] = torch.nan, torch.nan
