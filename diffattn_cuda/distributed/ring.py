"""Ring: keys and values travel from rank to rank, and each rank merges what it computes of them.

Between hops a rank holds the keys of one rank: its memory does not grow with the mesh. The results
are components, merged by their log-sum-exps. Under head–tail balance a causal hop needs no mask:

    keys of     a rank before this one           this rank      a rank behind this one
    computed    all rows × the head's keys       causal         the tail's rows × all keys

The next hop is posted before this hop's kernel, so it overlaps it. In the backward the gradients of
keys and values travel with them, in fp32, one kernel behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import arguments, autograd, components, functional, ops
from .collectives import Ranks, pass_on, wait

Arguments = dict[str, Any]
# Rows and keys of a hop, and whether it is causal.
Part = tuple[slice, slice, bool]
Gradients = tuple[Tensor, Tensor, Tensor]


def attend(
    q: Tensor, k: Tensor, v: Tensor, lam: Any, ranks: Ranks, options: Arguments
) -> tuple[Tensor, ...]:
    """q (batch, own seqlen_q, nheads, 2, d), and so on."""
    hops = (
        ranks, arguments.softmax_scale_of(options["softmax_scale"], q), options["causal"],
        options["deterministic"], options["softcap"],
    )  # fmt: skip
    if options["return_components"]:
        return _Components.apply(q, k, v, *hops)
    dtype = ops.compute_dtype(q)
    number = not isinstance(lam, Tensor)
    lam = torch.full((), lam, dtype=dtype, device=q.device) if number else lam.to(dtype)
    epilogue = (options["norm_eps"], options["out_scale"])
    out, lse = _Output.apply(q, k, v, lam, options["norm_weight"], *epilogue, *hops)
    return (out, lse) if options["return_lse"] else (out,)


class _Output(torch.autograd.Function):
    """The maps' difference, normed and scaled, with the LSEs (2, batch, nheads, own seqlen_q)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lam: Tensor,
        norm_weight: Tensor | None,
        norm_eps: float | None,
        out_scale: float,
        *hops: Any,
    ) -> tuple[Tensor, Tensor]:
        o, lse = _around(q, k, v, *hops)
        out = components.combine_components(o, lam, norm_weight, norm_eps, out_scale, q.dtype)
        ctx.save_for_backward(q, k, v, lam, norm_weight, o, lse)
        ctx.epilogue, ctx.hops = (norm_eps, out_scale), hops
        ctx.set_materialize_grads(False)
        return out, lse.movedim(-2, 0).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, lam, norm_weight, o, lse = ctx.saved_tensors
        ranks, scale, causal, deterministic, softcap = ctx.hops
        if dout is None:
            dout = torch.zeros_like(o[..., 0, :])
        do, dlam, dweight = components.gradients_of_combination(
            dout, o, lam, norm_weight, *ctx.epilogue
        )
        do, lam = do.to(q.dtype), arguments.expand_lambda(lam, q)
        dlse = components.gradient_of_lse(do, o, lam, dlse, q)
        lse = lse.movedim(-2, 0)

        def gradients(rows: slice, k: Tensor, v: Tensor, causal: bool) -> Gradients:
            mask = -1, 0 if causal else -1, 0, arguments.ALL_STREAM
            return ops.kernels.bwd_partial(
                do[:, rows], dlse[..., rows], q[:, rows], k, v, lam[:, rows], lse[..., rows],
                None, None, 0, 0, scale, *mask, deterministic, softcap,
            )  # fmt: skip

        of_qkv = _around_again(gradients, q, k, v, ranks, causal)
        return *of_qkv, dlam, dweight, *(None for _ in range(7))


class _Components(torch.autograd.Function):
    """Each map's own result and LSE, over all keys."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *hops: Any) -> tuple[Tensor, Tensor]:
        o, lse = _around(q, k, v, *hops)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.hops = hops
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, o, lse = ctx.saved_tensors
        ranks, scale, causal, deterministic, softcap = ctx.hops
        do = torch.zeros_like(o) if do is None else do
        of_lse = None if dlse is None else dlse.movedim(-2, 0)
        lse = lse.movedim(-2, 0)

        def gradients(rows: slice, k: Tensor, v: Tensor, causal: bool) -> Gradients:
            mask = -1, 0 if causal else -1, 0, arguments.ALL_STREAM
            return autograd.gradients_of_components(
                do[:, rows], None if of_lse is None else of_lse[..., rows], q[:, rows], k, v,
                o[:, rows], lse[..., rows], None, None, 0, 0, scale, *mask, deterministic,
                softcap,
            )  # fmt: skip

        return *_around_again(gradients, q, k, v, ranks, causal), *(None for _ in range(5))


def _around(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranks: Ranks,
    scale: float,
    causal: bool,
    deterministic: bool,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """The components of this rank's rows, over every rank's keys."""
    o, lse = None, None
    for (rows, keys, masked), k_hop, v_hop in _hops(q, k, v, ranks, causal):
        of_hop = functional.diff_flash_attn_func(
            q[:, rows], k_hop[:, keys], v_hop[:, keys], None, scale, masked,
            deterministic=deterministic, return_components=True, softcap=softcap,
        )  # fmt: skip
        if o is None or lse is None:  # the first hop has all rows
            o, lse = of_hop
            continue
        merged = zip((o[:, rows], lse[..., rows]), of_hop, strict=True)
        o[:, rows], lse[..., rows] = components.merge_components(*merged)
    assert o is not None and lse is not None
    return o, lse


def _around_again(
    gradients: Callable[[slice, Tensor, Tensor, bool], Gradients],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ranks: Ranks,
    causal: bool,
) -> Gradients:
    """dq, and dk and dv of this rank's own keys, which come home with the last hop."""
    dtype = ops.compute_dtype(q)
    dq = torch.zeros_like(q, dtype=dtype, memory_format=torch.contiguous_format)
    coming: Tensor | None = None  # dk and dv that travel with the keys of this hop
    for (rows, keys, masked), k_hop, v_hop in _hops(q, k, v, ranks, causal):
        dq_part, *of_keys = gradients(rows, k_hop[:, keys], v_hop[:, keys], masked)
        dq[:, rows] += dq_part
        if coming is None:
            sum_ = torch.zeros(k.numel() + v.numel(), dtype=dtype, device=k.device)
        else:
            sum_ = wait(coming)
        for x, part in zip(_apart(sum_, k, v), of_keys, strict=True):
            x[:, keys] += part
        coming = pass_on(sum_, ranks)
    assert coming is not None
    dk, dv = _apart(wait(coming), k, v)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _hops(
    q: Tensor, k: Tensor, v: Tensor, ranks: Ranks, causal: bool
) -> Iterator[tuple[Part, Tensor, Tensor]]:
    """Each rank's keys and values, this one's first; the next are on their way meanwhile."""
    here = torch.cat((k.flatten(), v.flatten()))
    for hop in range(ranks.size):
        coming = pass_on(here, ranks) if hop + 1 < ranks.size else None
        yield _part(ranks, hop, q.shape[1], k.shape[1], causal), *_apart(here, k, v)
        if coming is not None:
            here = wait(coming)


def _part(ranks: Ranks, hop: int, seqlen_q: int, seqlen_k: int, causal: bool) -> Part:
    """What is computed with the keys that are here after so many hops: see the table above."""
    every_row, every_key = slice(0, seqlen_q), slice(0, seqlen_k)
    if not causal or hop == 0:
        return every_row, every_key, causal
    if hop <= ranks.rank:  # the keys' rank is before this one
        return every_row, slice(0, seqlen_k // 2), False
    return slice(seqlen_q // 2, seqlen_q), every_key, False


def _apart(both: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Views shaped as k and v of what travels as one message."""
    return both[: k.numel()].view(k.shape), both[k.numel() :].view(v.shape)
