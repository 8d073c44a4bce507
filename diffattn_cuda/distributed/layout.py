"""Which tokens of a sequence a rank holds.

Plain: one run of tokens per rank. Balanced (head–tail): the sequence is cut into two chunks per
rank, and rank r of P holds chunk r and chunk 2P − 1 − r. Under a causal mask a late token sees more
keys than an early one; the two chunks of each rank see as many together as those of any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .collectives import Ranks, gather, wait


def chunks_of(ranks: Ranks) -> tuple[int, int]:
    """The chunks of this rank under head–tail balance, of 2·size."""
    return ranks.rank, 2 * ranks.size - 1 - ranks.rank


def own(x: Tensor, ranks: Ranks, dim: int, balanced: bool) -> Tensor:
    """This rank's tokens of x, which holds all of them in `dim`."""
    if not balanced:
        length = x.shape[dim] // ranks.size
        return x.narrow(dim, ranks.rank * length, length)
    length = x.shape[dim] // (2 * ranks.size)
    return torch.cat([x.narrow(dim, c * length, length) for c in chunks_of(ranks)], dim)


def by_rank(x: Tensor, size: int, dim: int, balanced: bool) -> Tensor:
    """x, which holds all tokens in `dim`, as each rank's: (size, .., own tokens, ..)."""
    count = 2 * size if balanced else size
    chunks = x.unflatten(dim, (count, x.shape[dim] // count)).movedim(dim, 0)
    if not balanced:
        return chunks
    pairs = torch.stack((chunks[:size], chunks[size:].flip(0)), dim + 1)
    return pairs.flatten(dim + 1, dim + 2)


def in_order(parts: Tensor, dim: int, balanced: bool) -> Tensor:
    """The inverse of `by_rank`: all tokens in `dim`, in the order of the sequence."""
    if balanced:
        length = parts.shape[dim + 1] // 2
        heads, tails = parts.unflatten(dim + 1, (2, length)).unbind(dim + 1)
        parts = torch.cat((heads, tails.flip(0)))  # (2·size, .., length, ..)
    return parts.movedim(0, dim).flatten(dim, dim + 1)


def whole(x: Tensor, ranks: Ranks, dim: int, balanced: bool) -> Tensor:
    """All tokens in `dim`, from each rank's own."""
    parts = wait(gather(x, ranks)).unflatten(0, (ranks.size, x.shape[0]))
    return in_order(parts, dim, balanced)


class Shard(torch.autograd.Function):
    """`own` of what each rank has whole; each rank gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, dim: int, balanced: bool) -> Tensor:
        ctx.where = ranks, dim, balanced
        return own(x, ranks, dim, balanced).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return whole(gradient, *ctx.where), None, None, None


class Unshard(torch.autograd.Function):
    """`whole`, for what every rank then does alike: a gradient's own tokens are the shard's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, dim: int, balanced: bool) -> Tensor:
        ctx.where = ranks, dim, balanced
        return whole(x, ranks, dim, balanced)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return own(gradient, *ctx.where).contiguous(), None, None, None
