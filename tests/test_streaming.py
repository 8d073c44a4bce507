"""Sinks and windows per KV head: one law for training, packed sequences and every cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cache import KINDS, make_cache
from support.case import DTYPES, Case, short
from support.checks import (
    check_answer,
    check_backward,
    check_forward,
    gradient_verdicts,
    run_backward,
)
from support.data import Problem, flat, make_problem
from support.emulation import visible
from support.impls import Impl
from support.law import enforce
from test_components_cache import check_cache
from torch import Tensor

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
SINKS = [0, 1, 5, 64, 70]
LEFTS = [0, 1, 15, 255]
# Rows, keys: within a tile, at its edges, longer than sink and window, fewer rows than keys, more.
SHAPES = [(3, 3), (64, 64), (65, 65), (70, 70), (150, 150), (333, 333), (40, 333), (100, 60)]
# nheads, nheads_k, which of the KV heads stream
MIXES: list[tuple[int, int, tuple[bool, ...] | None]] = [
    (2, 2, None),
    (2, 2, (True, False)),
    (3, 3, (False, True, False)),
    (4, 2, (False, True)),
    (8, 4, (True, False, True, True)),
    (2, 2, (False, False)),
]


def streaming_case(sink: int, left: int, shape: tuple[int, int], number: int = 0) -> Case:
    """A case for a sink, a window and lengths; everything else follows from its number."""
    heads, heads_k, streaming = MIXES[number % len(MIXES)]
    d, dv = [(32, 64), (64, 64), (24, 48), (128, 256)][number % 4]
    return Case(
        batch=1 + number % 2, sq=shape[0], sk=shape[1], heads=heads, heads_k=heads_k, d=d, dv=dv,
        causal=True, window=(left, 0), sink=sink, streaming=streaming, seed=number,
        dtype=DTYPES[number % 4], lam=["float", "token", "head"][number % 3],
        norm=["none", "affine", "plain"][number % 3], shared_k=number % 5 == 4 and d == dv,
        lse=number % 2 == 0,
    )  # fmt: skip


CASES = [
    streaming_case(sink, left, shape, a + 5 * b + 11 * c)
    for a, sink in enumerate(SINKS)
    for b, left in enumerate(LEFTS)
    for c, shape in enumerate(SHAPES)
]
ALL = pytest.mark.parametrize("case", CASES, ids=str)
SOME = pytest.mark.parametrize("case", CASES[::3], ids=str)


@ALL
def test_every_sink_and_window(impl: Impl, case: Case) -> None:
    check_forward(impl, make_problem(case, impl.device))


@SOME
def test_gradients(impl: Impl, case: Case) -> None:
    check_backward(impl, make_problem(case, impl.device))


@DTYPE
@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_every_mix_of_heads(
    impl: Impl, dtype: torch.dtype, mix: tuple[int, int, tuple[bool, ...] | None]
) -> None:
    heads, heads_k, streaming = mix
    case = Case(sq=200, sk=200, heads=heads, heads_k=heads_k, causal=True, window=(15, 0), sink=5,
                streaming=streaming, dtype=dtype, norm="affine")  # fmt: skip
    problem = make_problem(case, impl.device)
    check_forward(impl, problem)
    check_backward(impl, problem)


@DTYPE
def test_what_changes_nothing(impl: Impl, dtype: torch.dtype) -> None:
    """No sink, or every head told to stream, is the window as before; no head that streams, or no
    window, is the causal mask: bit for bit."""
    p = make_problem(Case(sq=150, sk=150, heads=2, heads_k=2, dtype=dtype), impl.device)

    def out(**options: Any) -> Tensor:
        result: Tensor = impl.func(flat(p.q), flat(p.k), p.v, 0.8, causal=True, **options)
        return result

    window = out(window_size=(40, 0))
    assert torch.equal(window, out(window_size=(40, 0), sink_size=0))
    assert torch.equal(window, out(window_size=(40, 0), streaming_heads=[True, True]))
    causal = out()
    assert torch.equal(causal, out(window_size=(40, 0), sink_size=9, streaming_heads=[False] * 2))
    assert torch.equal(causal, out(sink_size=9, streaming_heads=[True, False]))
    mixed = out(window_size=(40, 0), streaming_heads=[False, True])
    assert torch.equal(mixed[:, :, 0], causal[:, :, 0])
    assert torch.equal(mixed[:, :, 1], window[:, :, 1])


@DTYPE
def test_packed_sequences_have_sinks_of_their_own(impl: Impl, dtype: torch.dtype) -> None:
    lengths = [0, 3, 130, 65, 1, 300]
    case = Case(batch=1, sq=sum(lengths), sk=sum(lengths), heads=4, heads_k=2, causal=True,
                window=(20, 0), sink=7, streaming=(True, False), dtype=dtype)  # fmt: skip
    p = make_problem(case, impl.device)
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu = torch.tensor(ends, dtype=torch.int32, device=impl.device)

    def call(q: Tensor, k: Tensor, v: Tensor, lam: Any, **options: Any) -> Any:
        options = {"return_lse": True} | options
        return impl.varlen(q[0], k[0], v[0], lam, cu, cu, max(lengths), max(lengths), **options)

    out, lse = call(flat(p.q), flat(p.k), p.v, p.lam, **p.options())
    got = run_backward(lambda *a, **k: call(*a, return_lse=False, **k)[None], p)
    for begin, end in zip(ends, ends[1:], strict=False):
        rows = slice(begin, end)
        part = p.but(q=p.q[:, rows], k=p.k[:, rows], v=p.v[:, rows], dout=p.dout[:, rows])
        if begin == end:
            continue
        check_answer(out[None, rows], lse[:, None, :, rows], part)
        for verdict in gradient_verdicts({x: got[x][:, rows] for x in "qkv"}, part):
            enforce(verdict)


def hide(cache: Any, sequence: int, hidden: list[int]) -> None:
    """NaN in keys of a cache, and −1 in a block table where no key of a page is left."""
    slots = cache.slots(sequence, 0, max(hidden, default=-1) + 1)
    for j in hidden:
        cache.k[slots[0][j], slots[1][j]] = torch.nan
        cache.v[slots[0][j], slots[1][j]] = torch.nan
    table, page = cache.arguments.get("block_table"), cache.k.shape[1]
    if table is not None:
        for n in range(table.shape[1]):
            if set(range(n * page, n * page + page)) <= set(hidden):
                table[sequence, n] = -1


LENGTHS, PADS = [0, 5, 64, 71, 200, 330], [0, 3, 0, 9, 40, 0]


def decode(
    impl: Impl, case: Case, kind: str, new: int, lengths: list[int] = LENGTHS,
    pads: list[int] = PADS, **extra: Any,
) -> None:  # fmt: skip
    """A step over sequences of many lengths, whose hidden keys are NaN or evicted."""
    cache = make_cache(case, impl, kind, lengths, pads, capacity=512)
    p = cache.problem
    parts = [cache.visible(i, new) for i in range(len(lengths))]
    k = torch.stack([p.k[i, n : n + new] for i, n in enumerate(lengths)])
    v = torch.stack([p.v[i, n : n + new] for i, n in enumerate(lengths)])
    for i, n in enumerate(lengths):
        end = n + new - pads[i]  # keys from the padding on
        parts[i] = parts[i].but(
            k=torch.cat([p.k[i : i + 1, pads[i] : n], k[i : i + 1]], 1)[:, :end],
            v=torch.cat([p.v[i : i + 1, pads[i] : n], v[i : i + 1]], 1)[:, :end],
        )
        if end > 0:
            some_row = visible(case.sq, end, parts[i]).reshape(-1, end).any(0)
            hide(cache, i, [pads[i] + j for j in range(end) if not some_row[j]])
    out, lse = impl.kvcache(
        flat(p.q), cache.k, cache.v, p.lam, flat(k) if new else None, v if new else None,
        **(cache.arguments | p.options() | extra), return_lse=True,
    )  # fmt: skip
    for i, part in enumerate(parts):
        check_answer(out[i : i + 1], lse[:, i : i + 1], part)


@DTYPE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sq", [1, 7, 70])
def test_decoding_skips_hidden_keys(impl: Impl, dtype: torch.dtype, kind: str, sq: int) -> None:
    """Where every head streams, hidden slots hold NaN and their pages are gone."""
    case = Case(sq=sq, heads=4, heads_k=2, d=64, dv=128, causal=True, window=(15, 0), sink=5,
                dtype=dtype)  # fmt: skip
    decode(impl, case, kind, min(sq, 40))


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("left", LEFTS)
@pytest.mark.parametrize("num_splits", [0, 1, 3, 40])
def test_decoding_every_sink_and_window(impl: Impl, sink: int, left: int, num_splits: int) -> None:
    number = sink + left + num_splits
    heads, heads_k, streaming = MIXES[number % len(MIXES)]
    kind = KINDS[number % len(KINDS)]
    sq = [1, 3, 33][number % 3]
    case = Case(sq=sq, heads=heads, heads_k=heads_k, d=64, dv=128, causal=True, window=(left, 0),
                sink=sink, streaming=streaming, dtype=torch.bfloat16)  # fmt: skip
    decode(impl, case, kind, 0 if number % 2 else min(sq, 16), num_splits=num_splits)


@pytest.mark.parametrize("kind", ["plain", "paged16"])
@pytest.mark.parametrize("sq", [4, 9])
def test_windows_that_begin_in_the_sinks(impl: Impl, kind: str, sq: int) -> None:
    """Those of the first rows of a step, while those of the last ones begin behind the sinks."""
    sink, left = 17, 30  # the last sink begins a block of 16 keys
    pads = [0, 16, 5] * 4
    # Row 0 of these sequences sees its window from key 14, 15, 17 or 18 on.
    lengths = [pad + left + begin for pad, begin in zip(pads, [14, 15, 17, 18] * 3, strict=True)]
    case = Case(sq=sq, heads=2, heads_k=2, d=64, dv=128, causal=True, window=(left, 0), sink=sink,
                streaming=(True, False), dtype=impl.dtypes[-1])  # fmt: skip
    for num_splits in (1, 3):
        decode(impl, case, kind, sq, lengths, pads, num_splits=num_splits)


@pytest.mark.parametrize("kind", ["paged16", "paged64"])
@pytest.mark.parametrize("sq", [2, 9])
def test_pages_behind_a_gap(impl: Impl, kind: str, sq: int) -> None:
    """A split has both many blocks of sinks and many of the window."""
    case = Case(sq=sq, heads=2, heads_k=2, d=64, dv=128, causal=True, window=(100, 0), sink=70,
                dtype=impl.dtypes[-1])  # fmt: skip
    decode(impl, case, kind, 2, num_splits=1)


@pytest.mark.parametrize("sq", [3, 40])
@pytest.mark.parametrize("d", [64, 40])
def test_each_maps_own_result(impl: Impl, sq: int, d: int) -> None:
    """Of a step over a cache; the widths are those of a kernel, or narrower."""
    case = Case(sq=sq, heads=4, heads_k=2, d=d, dv=2 * d, dtype=impl.dtypes[-1], causal=True,
                window=(20, 0), sink=5)  # fmt: skip
    check_cache(impl, case, "plain", num_splits=1)


def test_a_nan_in_hidden_keys_reaches_no_row(impl: Impl) -> None:
    """Of other tiles, where the implementation multiplies whole tiles."""
    case = Case(sq=600, sk=600, heads=2, heads_k=2, d=64, dv=128, causal=True, window=(31, 0),
                sink=5, streaming=(True, False), dtype=torch.bfloat16)  # fmt: skip
    p = make_problem(case, impl.device)
    key = 200  # seen by rows 200 .. 231 of head 0, and by all from 200 on of head 1
    k, v = p.k.clone(), p.v.clone()
    k[:, key], v[:, key] = torch.nan, torch.nan

    def outputs(problem: Problem) -> tuple[Tensor, Tensor]:
        call = (flat(problem.q), flat(problem.k), problem.v, problem.lam)
        result: tuple[Tensor, Tensor] = impl.func(*call, **p.options(), return_lse=True)
        return result

    (out, lse), (clean, clean_lse) = outputs(p.but(k=k, v=v)), outputs(p)
    rows, keys = impl.tile
    tile = key // keys * keys  # seen in part by rows tile .. tile + keys + 30 of head 0
    first, last = tile // rows * rows, -(-(tile + keys + 31) // rows) * rows
    untouched = [*range(first), *range(last, 600)]
    assert torch.equal(out[:, untouched, 0], clean[:, untouched, 0])
    assert torch.equal(lse[..., 0, untouched], clean_lse[..., 0, untouched])
    assert torch.equal(out[:, :first, 1], clean[:, :first, 1])
    assert bool(out[:, key:, 1].isnan().all()) and bool(out[:, key : key + 32, 0].isnan().all())


@pytest.mark.needs("contains_nan_backward")
def test_a_nan_in_hidden_keys_reaches_no_gradient(impl: Impl) -> None:
    case = Case(sq=300, sk=300, heads=2, heads_k=2, d=64, dv=128, causal=True, window=(31, 0),
                sink=5, dtype=torch.float32)  # fmt: skip
    p = make_problem(case, impl.device)
    key = 100
    k, v = p.k.clone(), p.v.clone()
    k[:, key], v[:, key] = torch.nan, torch.nan
    got, clean = (run_backward(impl.func, problem) for problem in (p.but(k=k, v=v), p))
    rows = [*range(key), *range(key + 32, 300)]
    assert torch.equal(got["q"][:, rows], clean["q"][:, rows])
    # Rows that see the key have gradients for the keys 69 .. 231, and for the sink.
    keys = [*range(5, key - 31), *range(key + 63, 300)]
    assert torch.equal(got["k"][:, keys], clean["k"][:, keys])
    assert torch.equal(got["v"][:, keys], clean["v"][:, keys])
    assert bool(got["v"][:, :5].isnan().any())
