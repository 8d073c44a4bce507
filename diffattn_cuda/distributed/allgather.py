"""All-gather: a rank has every key for a while, and attends with its own queries.

A rank's queries are two chunks of the sequence. Each is one ordinary call on the keys up to the
last that it may see, a view of what was gathered. Bottom-right alignment then gives each row the
mask that it has in the whole sequence, with windows, sinks and streaming heads, and there are no
partial results to merge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import functional, ops
from .collectives import Ranks, add_and_scatter, gather, wait
from .layout import by_rank, chunks_of, in_order

Arguments = dict[str, Any]


class _Whole(torch.autograd.Function):
    """Every rank's keys and values, in order; their gradients are added up over the ranks.

    Added up in fp32, because each rank's part is rounded already.
    """

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, dim: int, *shards: Tensor) -> tuple[Tensor, ...]:
        ctx.where = ranks, dim
        posted = [gather(x, ranks) for x in shards]
        parts = (
            wait(x).unflatten(0, (ranks.size, s.shape[0]))
            for x, s in zip(posted, shards, strict=True)
        )
        return tuple(in_order(x, dim, balanced=True) for x in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ranks, dim = ctx.where
        posted = []
        for x in gradients:
            parts = by_rank(x.to(ops.compute_dtype(x)), ranks.size, dim, balanced=True)
            posted.append(add_and_scatter(parts.flatten(0, 1), ranks))
        of_shards = (wait(s).to(x.dtype) for s, x in zip(posted, gradients, strict=True))
        return None, None, *of_shards


def attend(
    q: Tensor, k: Tensor, v: Tensor, lam: Any, ranks: Ranks, options: Arguments
) -> tuple[Tensor, ...]:
    """Dense: q (batch, own seqlen_q, nheads, 2, d), and so on."""
    k, v = _Whole.apply(ranks, 1, k, v)
    causal, window = options["causal"], options["window_size"]
    if not causal and window == (-1, -1):
        return _results(functional.diff_flash_attn_func(q, k, v, lam, **options))
    length, seqlen_k = q.shape[1] // 2, k.shape[1]
    right = 0 if causal else window[1]
    results = []
    for half, chunk in enumerate(chunks_of(ranks)):
        rows = slice(half * length, (half + 1) * length)
        # The key on the diagonal of the chunk's last row, and those behind it that a row may see.
        diagonal = (chunk + 1) * length + seqlen_k - 2 * length * ranks.size
        end = seqlen_k if right < 0 else min(seqlen_k, max(0, diagonal + right))
        behind = end - diagonal  # the alignment moves by so much, so the window moves back
        moved = window if causal else (_plus(window[0], behind), _plus(right, -behind))
        result = functional.diff_flash_attn_func(
            q[:, rows], k[:, :end], v[:, :end], _rows_of(lam, 1, rows),
            **options | {"window_size": moved},
        )  # fmt: skip
        results.append(_results(result))
    return _joined(results, 1)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Any,
    ranks: Ranks,
    options: Arguments,
    cu_seqlens: Tensor,
    max_seqlen: int,
) -> tuple[Tensor, ...]:
    """Packed: q (own total, nheads, 2, d). A sequence may lie in any number of chunks."""
    k, v = _Whole.apply(ranks, 0, k, v)
    length = q.shape[0] // 2
    results = []
    for half, chunk in enumerate(chunks_of(ranks)):
        rows = slice(half * length, (half + 1) * length)
        starts_q = (cu_seqlens - chunk * length).clamp(0, length)  # others have no rows here
        # Cut behind the last row, the sequence that goes on there ends with it, as alignment needs.
        end = (chunk + 1) * length if options["causal"] else k.shape[0]
        result = functional.diff_flash_attn_varlen_func(
            q[rows], k[:end], v[:end], _rows_of(lam, 0, rows), starts_q, cu_seqlens.clamp(max=end),
            min(max_seqlen, length), min(max_seqlen, end), **options,
        )  # fmt: skip
        results.append(_results(result))
    return _joined(results, 0)


def _plus(side: int, more: int) -> int:
    return side if side < 0 else side + more


def _rows_of(lam: Any, dim: int, rows: slice) -> Any:
    """λ of each token is cut as the queries are; another is of all rows."""
    per_token = isinstance(lam, Tensor) and lam.dim() == dim + 2
    return lam.narrow(dim, rows.start, rows.stop - rows.start) if per_token else lam


def _results(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _joined(results: list[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    """Of both chunks: rows of out in `dim`, those of the LSE last."""
    out, *lse = zip(*results, strict=True)
    return torch.cat(out, dim), *(torch.cat(x, -1) for x in lse)
