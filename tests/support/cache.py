"""KV caches whose every unused slot is NaN, in each way a server stores them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .case import Case
from .data import Problem, flat, make_problem
from .impls import Impl

KINDS = ["plain", "indexed", "heads_first", "paged16", "paged64", "paged256"]


@dataclass
class Cache:
    """Stored keys and values of `problem.k[:, :length]`, and how to find a slot."""

    problem: Problem  # one row of keys and values a sequence, long enough for old and new ones
    lengths: list[int]  # valid tokens before the call, leftpad included
    leftpads: list[int]
    k: Tensor  # (rows or blocks, slots, 2 * nheads_k or nheads_k, d)
    v: Tensor
    kind: str
    lookup: Tensor  # (batch, capacity, 2): row or block, and slot in it
    arguments: dict[str, Any] = field(default_factory=dict)

    def slots(self, sequence: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        where = self.lookup[sequence, first:last]
        return where[:, 0].to(self.k.device), where[:, 1].to(self.k.device)

    def visible(self, sequence: int, new: int) -> Problem:
        """The dense problem of one sequence, with the keys that the cache now holds."""
        p = self.problem
        first, last = self.leftpads[sequence], self.lengths[sequence] + new
        slots = self.slots(sequence, min(first, last), last)
        row = slice(sequence, sequence + 1)
        k = self.k[slots].unflatten(1, (p.k.shape[2], -1))
        lam = p.lam[row] if isinstance(p.lam, Tensor) and p.lam.dim() == 3 else p.lam
        return p.but(q=p.q[row], k=k[None], v=self.v[slots][None], lam=lam, dout=p.dout[row])


def make_cache(
    case: Case,
    impl: Impl,
    kind: str,
    lengths: list[int],
    leftpads: list[int] | None = None,
    capacity: int = 256,
) -> Cache:
    """A cache of `capacity` slots a sequence (in all) with `lengths` of them filled."""
    batch = len(lengths)
    problem = make_problem(case.but(batch=batch, sk=capacity), impl.device)
    leftpads = leftpads or [0] * batch
    page = int(kind[5:]) if kind.startswith("paged") else capacity
    generator = torch.Generator().manual_seed(len(lengths) + page)
    blocks = -(-capacity // page) * batch
    rows = blocks + 2  # rows that belong to no sequence, NaN throughout
    table = torch.randperm(rows, generator=generator)[:blocks].reshape(batch, -1)
    if kind == "plain":
        table, rows = torch.arange(batch)[:, None], batch
    positions = torch.arange(capacity)
    lookup = torch.stack([table[:, positions // page], (positions % page).expand(batch, -1)], -1)
    heads = flat(problem.k).shape[2]
    k = _nan(problem.k, kind, rows, page, heads, case.d)
    v = _nan(problem.v, kind, rows, page, case.heads_k, case.dv)
    cache = Cache(problem, lengths, leftpads, k, v, kind, lookup)
    for i, (length, pad) in enumerate(zip(lengths, leftpads, strict=True)):
        slots = cache.slots(i, pad, max(length, pad))
        k[slots], v[slots] = flat(problem.k)[i, pad:length], problem.v[i, pad:length]
    cache.arguments["cache_seqlens"] = _int32(lengths, impl)
    if any(leftpads):
        cache.arguments["cache_leftpad"] = _int32(leftpads, impl)
    if kind in ("indexed", "heads_first"):
        cache.arguments["cache_batch_idx"] = _int32(table[:, 0].tolist(), impl)
    if kind.startswith("paged"):
        cache.arguments["block_table"] = table.to(impl.device, torch.int32)
    return cache


def _nan(like: Tensor, kind: str, rows: int, slots: int, heads: int, width: int) -> Tensor:
    if kind == "heads_first":  # (rows, heads, slots, width) storage
        shape = (rows, heads, slots, width)
        return torch.full(shape, torch.nan, dtype=like.dtype, device=like.device).transpose(1, 2)
    return torch.full((rows, slots, heads, width), torch.nan, dtype=like.dtype, device=like.device)


def _int32(values: list[int], impl: Impl) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=impl.device)


def rotate(x: Tensor, positions: list[int], cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotary embedding of x (seqlen, ..., d), pair by pair, as the formula has it."""
    out, half = x.double().clone(), cos.shape[1]
    pairs = torch.arange(half)
    a, b = (2 * pairs, 2 * pairs + 1) if interleaved else (pairs, pairs + half)
    for t, position in enumerate(positions):
        c, s = cos[position].double(), sin[position].double()
        out[t, ..., a] = x[t, ..., a].double() * c - x[t, ..., b].double() * s
        out[t, ..., b] = x[t, ..., a].double() * s + x[t, ..., b].double() * c
    return out.to(x.dtype)


def rotary_tables(seqlen: int, rotary_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (seqlen, rotary_dim / 2) in the dtype of `like`."""
    inverse = 100.0 ** -(torch.arange(0, rotary_dim, 2) / rotary_dim)
    angle = torch.arange(seqlen)[:, None] * inverse
    return angle.cos().to(like), angle.sin().to(like)
