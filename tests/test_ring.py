"""The ring cache of streaming heads: the rows of any other cache, at any length, in any chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cache import KINDS, make_cache, rotary_tables
from support.case import DTYPES, Case, short
from support.checks import check_answer
from support.data import Problem, flat, make_problem
from support.impls import Impl
from support.ring import Rings, make_rings, rotated
from torch import Tensor

from diffattn_cuda import combine_components
from diffattn_cuda.ring import Ring

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
# Sink and left. Both are within a block of 16, at its end and beyond it; a step of one token needs
# left + 1 slots behind the sinks.
MASKS = [(0, 0), (0, 15), (5, 16), (16, 31), (17, 40), (1, 64)]
# nheads, nheads_k, which of the KV heads stream
MIXES: list[tuple[int, int, tuple[bool, ...] | None]] = [
    (2, 2, None),
    (2, 2, (False, True)),
    (3, 3, (True, False, True)),
    (8, 2, (True, False)),
    (4, 1, None),
]
CHUNKS = {"1": [1] * 100, "7": [7] * 14, "64": [64, 64, 2], "mixed": [90, 1, 1, 40, 8]}


def ring_case(mask: tuple[int, int], number: int, tokens: int, dtype: torch.dtype) -> Case:
    """A case; everything that is not given follows from its number."""
    heads, heads_k, streaming = MIXES[number % len(MIXES)]
    d, dv = [(32, 64), (64, 64), (64, 128), (128, 256), (24, 48)][number % 5]
    return Case(
        batch=1 + number % 2, sq=tokens, sk=tokens, heads=heads, heads_k=heads_k, d=d, dv=dv,
        causal=True, window=(mask[1], 0), sink=mask[0], streaming=streaming, dtype=dtype,
        lam=["float", "token", "head"][number % 3], norm=["none", "affine", "plain"][number % 3],
        shared_k=d == dv, seed=number,
    )  # fmt: skip


def lam_of(p: Problem, rows: slice) -> float | Tensor:
    return p.lam[:, rows] if isinstance(p.lam, Tensor) and p.lam.dim() == 3 else p.lam


def steps(impl: Impl, rings: Rings, chunks: list[int], **extra: Any) -> tuple[Tensor, Tensor]:
    """Out and LSE of all tokens, a chunk at a time; what has left every window is poisoned."""
    p, at, outs, lses = rings.problem, 0, [], []
    for count in chunks:
        rows = slice(at, at + count)
        out, lse = rings.call(impl, p.q[:, rows], p.k[:, rows], p.v[:, rows], lam=lam_of(p, rows),
                              cache_seqlens=at, return_lse=True, **extra)  # fmt: skip
        at += count
        for sequence in range(len(p.q)):
            rings.poison(sequence, at)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 1), torch.cat(lses, 3)


@DTYPE
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_every_chunking(impl: Impl, dtype: torch.dtype, mask: tuple[int, int], chunks: str) -> None:
    """Rings for steps of one token: longer ones attend before they overwrite."""
    number = MASKS.index(mask) + 2 * list(CHUNKS).index(chunks) + DTYPES.index(dtype)
    p = make_problem(ring_case(mask, number, sum(CHUNKS[chunks]), dtype), impl.device)
    rings = make_rings(p, 1, capacity=p.k.shape[1])
    check_answer(*steps(impl, rings, CHUNKS[chunks]), p)


def test_a_long_prompt(impl: Impl) -> None:
    """A thousand tokens at once, many times what the ring holds, then more."""
    case = ring_case((17, 40), 2, 1100, impl.dtypes[-1]).but(batch=1, heads=3, d=32, dv=64)
    p = make_problem(case, impl.device)
    out, lse = steps(impl, make_rings(p, 1, capacity=1100), [1000, 1, 99])
    # The law is about rows: a few of them will do, from the first to those behind the prompt.
    for end in (20, 70, 600, 1000, 1001, 1100):
        rows, keys = slice(max(end - 30, 0), end), slice(0, end)
        part = p.but(q=p.q[:, rows], k=p.k[:, keys], v=p.v[:, keys], dout=p.dout[:, rows])
        part = part.but(lam=lam_of(p, rows))
        check_answer(out[:, rows], lse[..., rows], part)


@pytest.mark.parametrize("new", [1, 2, 7, 40, 100])
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_every_slack(impl: Impl, new: int, tokens: int) -> None:
    """Rings that are just as long as a step needs, longer and shorter."""
    case = ring_case((5, 24), new + tokens, 3 * tokens + 100, impl.dtypes[-1])
    p = make_problem(case, impl.device)
    rings = make_rings(p, new, capacity=p.k.shape[1])
    check_answer(*steps(impl, rings, [100, tokens, tokens, tokens]), p)


@DTYPE
@pytest.mark.parametrize("sq, new", [(1, 1), (7, 7), (3, 0), (4, 20), (33, 9), (70, 70)], ids=str)
@pytest.mark.parametrize("number", range(4))
def test_sequences_of_many_lengths(
    impl: Impl, dtype: torch.dtype, sq: int, new: int, number: int
) -> None:
    """One step of sequences with padding, before the wrap, at it and long after it, in rows of the
    caches that belong to other sequences too."""
    lengths, pads = [0, 5, 64, 71, 200, 330], [0, 3, 0, 9, 40, 2]
    case = ring_case(MASKS[2 + number % 4], number, 400, dtype).but(batch=6, sq=sq)
    p = make_problem(case, impl.device)
    rings = make_rings(p, 1 + max(sq - new, 0), capacity=400, rows=8)
    where = torch.tensor([7, 1, 0, 5, 3, 6], dtype=torch.int32, device=impl.device)
    rings.arguments = {"cache_batch_idx": where, "cache_seqlens": _int32(lengths, impl)}
    if number:
        rings.arguments["cache_leftpad"] = _int32(pads, impl)
    else:
        pads = [0] * 6
    for i, (length, pad) in enumerate(zip(lengths, pads, strict=True)):
        rings.store(i, length, pad)
    before = [t.clone() for t in (rings.k_stream, rings.v_stream)]
    if new < sq:  # rows that bring no key look further back than the next row would
        for i, (length, pad) in enumerate(zip(lengths, pads, strict=True)):
            back(rings, i, length - pad, sq - new, pad)
    k, v = (torch.stack([t[i, n : n + new] for i, n in enumerate(lengths)]) for t in (p.k, p.v))
    out, lse = rings.call(impl, p.q, k if new else None, v if new else None, return_lse=True)
    for i, (length, pad) in enumerate(zip(lengths, pads, strict=True)):
        keys, row = slice(min(pad, length + new), length + new), slice(i, i + 1)
        lam = p.lam[row] if isinstance(p.lam, Tensor) and p.lam.dim() == 3 else p.lam
        part = p.but(q=p.q[row], k=p.k[row, keys], v=p.v[row, keys], dout=p.dout[row], lam=lam)
        check_answer(out[row], lse[:, row], part)
    for free in (2, 4):  # rows of no sequence
        assert torch.equal(rings.k_stream[free].isnan(), before[0][free].isnan())
        assert bool(rings.v_stream[free].isnan().all())


def back(rings: Rings, sequence: int, keys: int, rows: int, pad: int) -> None:
    """Puts the keys into a ring that rows before the next one see too."""
    p, row, heads = rings.problem, rings.row(sequence), rings.streaming()
    for key in range(max(keys - p.window[0] - rows, 0), keys):
        slot = rings.ring.slot(key)
        rings.k_stream[row, slot] = flat(p.k[sequence, pad + key, heads])
        rings.v_stream[row, slot] = p.v[sequence, pad + key, heads]


def _int32(values: list[int], impl: Impl) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=impl.device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [1, 40, 100])
def test_next_to_every_cache(impl: Impl, kind: str, new: int) -> None:
    """Full heads keep their cache, with pages too; the ring has a row for each sequence."""
    lengths = [0, 33, 200]
    case = Case(sq=new, heads=4, heads_k=2, d=64, dv=128, causal=True, window=(20, 0), sink=5,
                streaming=(False, True), dtype=impl.dtypes[-1])  # fmt: skip
    cache = make_cache(case, impl, kind, lengths, capacity=512)
    p = cache.problem
    rows = cache.k.shape[0] if "block_table" not in cache.arguments else len(lengths)
    rings = make_rings(p, 1, capacity=512, rows=rows)
    rings.arguments = {n: a for n, a in cache.arguments.items() if n != "block_table"}
    for i, length in enumerate(lengths):
        rings.store(i, length)
    rings.k, rings.v, rings.arguments = cache.k[:, :, :2], cache.v[:, :, :1], cache.arguments
    k, v = (torch.stack([t[i, n : n + new] for i, n in enumerate(lengths)]) for t in (p.k, p.v))
    out, lse = rings.call(impl, p.q, k, v, return_lse=True)
    for i, length in enumerate(lengths):
        keys, row = slice(0, length + new), slice(i, i + 1)
        part = p.but(q=p.q[row], k=p.k[row, keys], v=p.v[row, keys], dout=p.dout[row])
        check_answer(out[row], lse[:, row], part)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("chunks", ["7", "mixed"])
def test_positions_are_absolute(impl: Impl, chunks: str, interleaved: bool) -> None:
    """Keys are rotated where they stand in the sequence, padding counted, whatever their slot."""
    tokens, pad = sum(CHUNKS[chunks]), 11
    case = ring_case((5, 24), 2, tokens, impl.dtypes[-1]).but(batch=1)
    p = make_problem(case, impl.device)
    cos, sin = rotary_tables(tokens, 32, p.q)
    rings = make_rings(p, 1, capacity=tokens)
    options = {"rotary_cos": cos, "rotary_sin": sin, "rotary_interleaved": interleaved}
    chunk = CHUNKS[chunks]
    first = next(i for i in range(len(chunk)) if sum(chunk[: i + 1]) >= pad)
    outs, at = [], 0
    for n, count in enumerate(chunk):
        rows = slice(at, at + count)
        at += count
        rings.arguments["cache_leftpad"] = _int32([min(pad, at)], impl)
        outs.append(rings.call(impl, p.q[:, rows], p.k[:, rows], p.v[:, rows], return_lse=True,
                               cache_seqlens=at - count, **options))  # fmt: skip
        if n >= first:
            rings.poison(0, at - pad)
    q, k = (rotated(t, 0, cos, sin, interleaved)[:, pad:] for t in (p.q, p.k))
    part = p.but(q=q, k=k, v=p.v[:, pad:], dout=p.dout[:, pad:])
    out, lse = (torch.cat([o[n] for o in outs], 1 + 2 * n)[..., pad:, :, :] if n == 0 else
                torch.cat([o[n] for o in outs], 3)[..., pad:] for n in (0, 1))  # fmt: skip
    check_answer(out, lse, part)


@pytest.mark.parametrize("new", [1, 5, 30, 200])
def test_what_a_step_writes(impl: Impl, new: int) -> None:
    """The last R keys in their slots and the sinks, bit for bit; all other slots as they were."""
    case = ring_case((5, 24), 2, 400, impl.dtypes[-1]).but(batch=2)
    p = make_problem(case, impl.device)
    for length in (0, 10, 47, 150):
        rings = make_rings(p, 6, capacity=400)
        ring, end, heads = rings.ring, length + new, rings.streaming()
        rings.k_stream.fill_(1.0), rings.v_stream.fill_(2.0)
        k_want, v_want = rings.k_stream.clone(), rings.v_stream.clone()
        for key in ring.kept(length, end, end):
            k_want[:, ring.slot(key)] = flat(p.k[:, key][:, heads])
            v_want[:, ring.slot(key)] = p.v[:, key][:, heads]
        rings.k.fill_(0.0), rings.v.fill_(0.0)
        rows = slice(length, end)
        rings.call(impl, p.q[:, rows], p.k[:, rows], p.v[:, rows], cache_seqlens=length)
        assert torch.equal(rings.k_stream, k_want) and torch.equal(rings.v_stream, v_want)
        assert torch.equal(rings.v[:, rows], p.v[:, rows][:, :, rings.full()])


def test_a_step_without_rows_appends(impl: Impl) -> None:
    p = make_problem(ring_case((5, 24), 1, 90, impl.dtypes[-1]).but(batch=1), impl.device)
    whole, parts = make_rings(p, 1, 90), make_rings(p, 1, 90)
    whole.call(impl, p.q[:, :0], p.k, p.v, lam=0.5, cache_seqlens=0)
    for t in range(90):
        row = slice(t, t + 1)
        parts.call(impl, p.q[:, row], p.k[:, row], p.v[:, row], lam=0.5, cache_seqlens=t)
    for name in ("k", "v", "k_stream", "v_stream"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=0, atol=0,
                                   equal_nan=True)  # fmt: skip


@pytest.mark.parametrize("num_splits", [1, 2, 5, 1000])
def test_splits(impl: Impl, num_splits: int) -> None:
    p = make_problem(ring_case((17, 200), 2, 700, impl.dtypes[-1]), impl.device)
    rings = make_rings(p, 1, capacity=700)
    check_answer(*steps(impl, rings, [640, 1, 1, 20, 38], num_splits=num_splits), p)


def test_components(impl: Impl) -> None:
    """Each map's own result, from a ring too."""
    p = make_problem(
        ring_case((5, 24), 2, 60, impl.dtypes[-1]).but(norm="none", lam="head"), impl.device
    )
    one, other = make_rings(p, 1, 60), make_rings(p, 1, 60)
    options = {"norm_weight": None, "norm_eps": None, "out_scale": 1.0}
    o, lse = one.call(impl, p.q, p.k, p.v, lam=None, cache_seqlens=0, return_components=True,
                      **options)  # fmt: skip
    _, want = other.call(impl, p.q, p.k, p.v, cache_seqlens=0, return_lse=True, **options)
    torch.testing.assert_close(lse.movedim(-2, 0), want)
    out = combine_components(o, p.lam, out_dtype=p.q.dtype)
    check_answer(out, lse.movedim(-2, 0), p.but(**options))


def test_any_length_without_a_full_head(impl: Impl) -> None:
    """A sequence of 400 million tokens, in 48 slots."""
    case = Case(batch=1, sq=3, sk=40, heads=2, heads_k=1, d=64, dv=128, causal=True,
                window=(20, 0), sink=5, dtype=impl.dtypes[-1])  # fmt: skip
    p = make_problem(case, impl.device)
    rings = make_rings(p, 3, capacity=0)
    length, heads = 400_000_003, rings.streaming()
    for key in [*range(5), *range(length - 20, length)]:
        at = key if key < 5 else 5 + key - (length - 20)
        rings.k_stream[0, rings.ring.slot(key)] = flat(p.k[0, at, heads])
        rings.v_stream[0, rings.ring.slot(key)] = p.v[0, at, heads]
    out, lse = rings.call(impl, p.q, p.k[:, 25:28], p.v[:, 25:28], cache_seqlens=length,
                          return_lse=True)  # fmt: skip
    check_answer(out, lse, p.but(k=p.k[:, :28], v=p.v[:, :28]))


@pytest.mark.needs("has_ops")
def test_compiled_and_traced(impl: Impl) -> None:
    """In one graph, for every length; the caches are written as in eager mode."""
    p = make_problem(ring_case((5, 24), 2, 60, impl.dtypes[0]).but(lam="float"), impl.device)
    one, other = make_rings(p, 1, 60), make_rings(p, 1, 60)
    for rings in (one, other):  # what is compared may not be NaN
        for t in (rings.k, rings.v, rings.k_stream, rings.v_stream):
            t.zero_()

    def step(rings: Rings, at: Tensor, rows: slice) -> Tensor:
        out: Tensor = rings.call(impl, p.q[:, rows], p.k[:, rows], p.v[:, rows], cache_seqlens=at)
        return out

    graph = torch.compile(step, fullgraph=True, backend="aot_eager")
    at = torch.zeros(len(p.q), dtype=torch.int32, device=impl.device)
    for begin, end in ((0, 30), (30, 31), (31, 60)):
        rows = slice(begin, end)
        assert torch.equal(graph(one, at, rows), step(other, at, rows))
        at += end - begin
    for name in ("k", "v", "k_stream", "v_stream"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.needs("has_ops")
@pytest.mark.parametrize("components", [False, True])
def test_opcheck(impl: Impl, components: bool) -> None:
    p = make_problem(ring_case((5, 24), 1, 4, impl.dtypes[0]).but(batch=1), impl.device)
    rings = make_rings(p, 1, 64)
    caches = [
        t.zero_().unflatten(2, (1, -1)) if n % 2 == 0 else t.zero_()
        for n, t in enumerate((rings.k, rings.v, rings.k_stream, rings.v_stream))
    ]
    lam = p.lam_rows(torch.float32).contiguous()
    seqlens, mask = _int32([40], impl), (24, 0, 5, 0b10, True)
    middle = (p.k, p.v, None, None, seqlens, None, None, None)
    args: tuple[Any, ...] = (
        p.q,
        *caches[:2],
        lam,
        *middle,
        None,
        0.2,
        *mask,
        None,
        1.0,
        0,
        *caches[2:],
    )
    if components:
        args = (p.q, *caches[:2], *middle, 0.2, *mask, 0, *caches[2:])
    op = torch.ops.diffattn.decode_components if components else torch.ops.diffattn.decode
    torch.library.opcheck(op, args)


@pytest.mark.needs("has_ops")
@pytest.mark.needs("traces")
def test_autocast(impl: Impl) -> None:
    """The caches keep their dtype, which is autocast's."""
    p = make_problem(ring_case((5, 24), 2, 20, torch.bfloat16).but(lam="float"), impl.device)
    one, other = make_rings(p, 1, 20), make_rings(p, 1, 20)
    want = one.call(impl, p.q, p.k, p.v, cache_seqlens=0)
    with torch.autocast(impl.device.type, torch.bfloat16):
        got = other.call(impl, p.q.float(), p.k.float(), p.v.float(), cache_seqlens=0)
    assert torch.equal(got, want)
    torch.testing.assert_close(one.k_stream, other.k_stream, rtol=0, atol=0, equal_nan=True)


def test_the_slots_that_a_ring_needs() -> None:
    assert Ring.of_step(5, 25, 1) == Ring(16, 32) == Ring.of_slots(48, 5)
    assert Ring.of_step(0, 1, 1) == Ring(0, 16)
    assert Ring.of_step(16, 16, 17) == Ring(16, 32)
    assert Ring.of_step(16, 16, 18) == Ring(16, 48)
    ring = Ring(16, 32)
    assert sorted(ring.slot(key) for key in ring.kept(0, 999, 999)) == list(range(48))
