"""Ulysses: tokens are exchanged for heads, so that a rank attends with its heads over all tokens.

KV heads stay with the query heads that read them, so the mesh's size has to divide their number.
What a rank computes is an ordinary call on the whole sequence, with every option that this has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import functional
from .collectives import Ranks, exchange, wait

Arguments = dict[str, Any]


class _Exchange(torch.autograd.Function):
    """Cuts each tensor in one dimension, and joins what all ranks send in another."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, cut: int, join: int, *whole: Tensor) -> tuple[Tensor, ...]:
        ctx.where = ranks, cut, join
        return _exchanged(ranks, cut, join, whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ranks, cut, join = ctx.where
        return None, None, None, *_exchanged(ranks, join, cut, gradients)


def _exchanged(
    ranks: Ranks, cut: int, join: int, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    parts = (x.unflatten(cut, (ranks.size, x.shape[cut] // ranks.size)) for x in tensors)
    posted = [exchange(x.movedim(cut, 0), ranks) for x in parts]
    return tuple(wait(x).movedim(0, join).flatten(join, join + 1) for x in posted)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Any,
    ranks: Ranks,
    options: Arguments,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
) -> tuple[Tensor, ...]:
    """Dense, q (batch, own seqlen_q, nheads, 2, d), or packed, (own total, nheads, 2, d)."""
    nheads, nheads_k = q.shape[-3], k.shape[-3]
    if nheads_k % ranks.size or nheads % nheads_k:
        raise ValueError(
            f"v has {nheads_k} heads and q {nheads}: mode='ulysses' accepts a number of KV heads "
            f"that the mesh's size, {ranks.size}, divides; 'allgather' and 'ring' take any"
        )
    token = q.dim() - 4
    per_token = isinstance(lam, Tensor) and lam.dim() == token + 2
    moved = (q, k, v, lam) if per_token else (q, k, v)
    q, k, v, *of_tokens = _Exchange.apply(ranks, token + 1, token, *moved)
    lam = of_tokens[0] if per_token else _own_heads(lam, ranks)
    if (heads := options["streaming_heads"]) is not None:
        options = options | {"streaming_heads": _own_heads(torch.as_tensor(heads), ranks)}
    if cu_seqlens is None:
        result = functional.diff_flash_attn_func(q, k, v, lam, **options)
    else:
        starts = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
        result = functional.diff_flash_attn_varlen_func(q, k, v, lam, *starts, **options)
    out, *lse = result if isinstance(result, tuple) else (result,)
    (out,) = _Exchange.apply(ranks, token, token + 1, out)
    heads_of_lse = -3 if options["return_components"] else -2
    of_rows = (_Exchange.apply(ranks, x.dim() - 1, x.dim() + heads_of_lse, x)[0] for x in lse)
    return out, *of_rows


def _own_heads(x: Any, ranks: Ranks) -> Any:
    """Of what each head has one; a single one is of all heads."""
    if not isinstance(x, Tensor) or x.dim() == 0:
        return x
    count = x.shape[0] // ranks.size
    return x.narrow(0, ranks.rank * count, count)
