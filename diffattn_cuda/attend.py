"""From checked arguments to the ops of the forward, dense or packed."""

from __future__ import annotations

from torch import Tensor

from . import arguments, groups, ops
from .arguments import Lambda


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Lambda | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    mask: tuple[int, int, int, int],
    deterministic: bool,
    softcap: float,
    norm_weight: Tensor | None,
    norm_eps: float | None,
    out_scale: float,
) -> tuple[Tensor, Tensor]:
    """The output and the LSEs."""
    norm_weight, norm_eps, out_scale = arguments.epilogue(
        norm_weight, norm_eps, out_scale, q, ops.width_of(v, k)
    )
    out, lse, *_ = ops.kernels.fwd(
        groups.for_kernel(q), k, v, arguments.expand_lambda(lam, q), norm_weight, cu_seqlens_q,
        cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, *mask, norm_eps, out_scale,
        deterministic, False, softcap,
    )  # fmt: skip
    return out, groups.statistics_from_pairs(lse, groups.signals_of(q))


def attend_apart(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    mask: tuple[int, int, int, int],
    deterministic: bool,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """Each map's own result."""
    o, lse = ops.kernels.components(
        groups.for_kernel(q), k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        softmax_scale, *mask, deterministic, softcap,
    )  # fmt: skip
    return of_groups(o, lse, groups.signals_of(q))


def of_groups(o: Tensor, lse: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """What an op of components gave for groups or their pairs, as users have it."""
    return groups.from_pairs(o, r), ops.head_major(groups.statistics_from_pairs(lse, r))
