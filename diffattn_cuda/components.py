"""The two softmax maps' results on their own: merged over parts of the keys, combined at the end.

O = O1 − λ·O2 and its two log-sum-exps do not say how to merge results of different keys; O1, O2 and
their log-sum-exps do. The functions of `diffattn_cuda` return these with return_components=True.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import arguments, groups, ops, score_caps
from .arguments import Heads, Lambda, Window

__all__ = ["combine_components", "diff_flash_attn_backward", "merge_components"]


def merge_components(o: Sequence[Tensor], lse: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The components over all keys, from those over parts of them; differentiable.

    Args:
        o: of each part, (.., seqlen_q, groups, r + 1, dv), as return_components=True gives it. All
            parts have the same queries, and each key is in one part.
        lse: of each part, (.., groups, r + 1, seqlen_q). −inf: the row saw no key in this part.

    Returns:
        o and lse of the whole, in the same shapes and dtypes. A row that saw no key in any part has
        o = 0 and lse = −inf.

    Raises:
        ValueError: no parts, or parts whose number, shapes, dtypes or devices differ.
        TypeError: a tensor was expected.

    Examples:
        >>> from diffattn_cuda import diff_flash_attn_func
        >>> q, k = torch.randn(2, 1, 100, 8, 64)
        >>> v = torch.randn(1, 100, 4, 128)
        >>> parts = [
        ...     diff_flash_attn_func(q, k[:, keys], v[:, keys], None, return_components=True)
        ...     for keys in (slice(0, 60), slice(60, 100))
        ... ]
        >>> o, lse = merge_components(*zip(*parts))
        >>> whole, _ = diff_flash_attn_func(q, k, v, None, return_components=True)
        >>> torch.allclose(o, whole, atol=1e-5)
        True
    """
    o, lse = list(o), list(lse)
    _check_parts(o, lse)
    logs = torch.stack(lse)  # (parts, .., groups, r + 1, seqlen_q)
    total = logs.logsumexp(0)
    # exp(−inf − −inf) would be NaN: where no part saw a key, each weight is exp(−inf).
    weights = (logs - total.masked_fill(total == -torch.inf, 0.0)).exp()
    merged = sum(_per_row(weight) * part for weight, part in zip(weights, o, strict=True))
    assert isinstance(merged, Tensor)
    return merged, total


def combine_components(
    o: Tensor,
    lam: Lambda,
    norm_weight: Tensor | None = None,
    norm_eps: float | None = None,
    out_scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The output from its components: O1 − λ·O2, normed and scaled; differentiable.

    Args:
        o: (.., groups, r + 1, dv), fp32 or fp64, the noise last.
        lam: λ, a number, or a tensor of shape (), (groups·r,), (.., groups·r) or (.., groups), in
            o's dtype, fp32 or out_dtype. Its gradient is computed in o's dtype.
        norm_weight: as in `diffattn_cuda.diff_flash_attn_func`.
        norm_eps: as there.
        out_scale: as there.
        out_dtype: of the output; None: o's.

    Returns:
        out (.., groups·r, dv), rounded once.

    Raises:
        ValueError: a shape or device that does not fit o's.
        TypeError: a tensor, number or dtype that is none.

    Examples:
        >>> from diffattn_cuda import diff_flash_attn_func
        >>> q, k = torch.randn(2, 1, 100, 8, 64)
        >>> v = torch.randn(1, 100, 4, 128)
        >>> o, lse = diff_flash_attn_func(q, k, v, None, return_components=True)
        >>> out = combine_components(o, 0.8)
        >>> torch.allclose(out, diff_flash_attn_func(q, k, v, 0.8), atol=1e-5)
        True
    """
    _check_components("o", o)
    out_dtype = o.dtype if out_dtype is None else _floating("out_dtype", out_dtype)
    arguments.check_tensors(o, lam=lam, norm_weight=norm_weight)
    if isinstance(lam, Tensor) and lam.dtype == out_dtype:
        lam = lam.to(o.dtype)
    norm_weight, norm_eps, scale = arguments.epilogue(
        norm_weight, norm_eps, out_scale, o, o.shape[-1]
    )
    r = groups.signals_of(o)
    signals, noise = o.split((r, 1), -2)
    lam = arguments.expand_lambda(lam, o).unflatten(-1, (-1, r))[..., None]
    out = (signals - lam * noise).flatten(-3, -2)
    if norm_eps is not None:
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + norm_eps)
    if norm_weight is not None:
        out = out * norm_weight
    return (out * scale).to(out_dtype)


@torch.no_grad()
def diff_flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Lambda,
    o: Tensor,
    lse: Tensor,
    dlse: Tensor | None = None,
    grad_dtype: torch.dtype | None = None,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    norm_weight: Tensor | None = None,
    norm_eps: float | None = None,
    out_scale: float = 1.0,
    deterministic: bool = False,
    sink_size: int = 0,
    streaming_heads: Heads = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of the output, from a part of the keys and the components over all of them.

    For an output that `combine_components` made of merged components. Over all parts dq adds up;
    dk and dv are those of the part's own keys. dlam and dw come from o alone, so each part returns
    the whole of them: they are never added up.

    Arguments that are not listed are those of the forward functions; cu_seqlens_q and the three
    behind it are given together, for packed sequences.

    Args:
        dout: (.., seqlen_q, groups·r, dv), the output's gradient.
        k: of this part.
        v: of this part.
        o: (.., seqlen_q, groups, r + 1, dv), over all keys.
        lse: (.., groups, r + 1, seqlen_q), over all keys.
        dlse: the gradient of lse; None: zero.
        grad_dtype: of dq, dk and dv; None: q's. They are summed in fp32 (fp64 for fp64 inputs), so
            parts that are added up lose nothing in it.

    Returns:
        dq, dk and dv, shaped as q, k and v; dlam, None where lam is a number; and dw, None without
        a norm weight.

    Raises:
        ValueError: as `diff_flash_attn_func`; o or lse that do not fit q and v.
        TypeError: as `diff_flash_attn_func`.
        RuntimeError: as `diff_flash_attn_func`.

    Examples:
        >>> from diffattn_cuda import diff_flash_attn_func
        >>> q, k = torch.randn(2, 1, 100, 8, 64)
        >>> v, dout = torch.randn(2, 1, 100, 4, 128)
        >>> o, lse = diff_flash_attn_func(q, k, v, None, return_components=True)
        >>> parts = [
        ...     diff_flash_attn_backward(dout, q, k[:, keys], v[:, keys], 0.8, o, lse)
        ...     for keys in (slice(0, 60), slice(60, 100))
        ... ]
        >>> dq = parts[0][0] + parts[1][0]
        >>> _ = q.requires_grad_()
        >>> diff_flash_attn_func(q, k, v, 0.8).backward(dout)
        >>> torch.allclose(dq, q.grad, atol=1e-5)
        True
    """
    packed = cu_seqlens_q is not None
    for name, given in (("dout", dout), ("o", o), ("lse", lse)):
        arguments.require_tensor(name, given)
    arguments.check_tensors(
        q, dout=dout, k=k, v=v, lam=lam, o=o, lse=lse, dlse=dlse, norm_weight=norm_weight,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    heads = arguments.query_heads(q, "q", 4 if packed else 5)
    keys = arguments.key_heads(k, v, "k", "v", 3 if packed else 4)
    groups.check_key_heads(heads, keys, "k", keys.shape[-3])
    r, width = groups.signals_of(heads), ops.width_of(v, keys)
    _check_shape("o", o, (*heads.shape[:-1], width), ops.compute_dtype(q))
    *batch, seqlen_q, ngroups, maps, _ = o.shape
    for name, t in (("lse", lse), ("dlse", dlse)):
        if t is not None:
            _check_shape(name, t, (*batch, ngroups, maps, seqlen_q), o.dtype)
    _check_shape("dout", dout, (*batch, seqlen_q, ngroups * r, width), q.dtype)

    of_rows = arguments.expand_lambda(lam, heads)
    arguments.epilogue(norm_weight, norm_eps, out_scale, q, width)
    do, dlam, dweight = gradients_of_combination(dout, o, lam, norm_weight, norm_eps, out_scale)
    do, lam = do.to(q.dtype), of_rows
    dlse = None if dlse is None else dlse.movedim(-2, 0)
    lse, taken = lse.movedim(-2, 0), groups.for_kernel(heads)
    if taken.shape != heads.shape:
        lse = groups.statistics_to_pairs(lse)
    gradients = ops.kernels.bwd_partial(
        do, gradient_of_lse(do, o, lam, dlse, taken), taken, keys, v, lam, lse, cu_seqlens_q,
        cu_seqlens_k,
        arguments.integer("max_seqlen_q", max_seqlen_q),
        arguments.integer("max_seqlen_k", max_seqlen_k),
        arguments.softmax_scale_of(softmax_scale, q),
        *arguments.mask_of(window_size, causal, sink_size, streaming_heads, keys.shape[-3]),
        arguments.flag("deterministic", deterministic),
        score_caps.softcap_of(softcap),
    )  # fmt: skip
    dtype = q.dtype if grad_dtype is None else _floating("grad_dtype", grad_dtype)
    gradients = (groups.sum_pairs(gradients[0], r), *gradients[1:])
    dq, dk, dv = (x.to(dtype).reshape(t.shape) for x, t in zip(gradients, (q, k, v), strict=True))
    return dq, dk, dv, dlam, dweight


def gradients_of_combination(
    dout: Tensor,
    o: Tensor,
    lam: Lambda,
    norm_weight: Tensor | None,
    norm_eps: float | None,
    out_scale: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of O1 (O2's is −λ times that) by output head, λ and the norm weight: what autograd would do.

    Written out, because autograd does not run under inference mode, nor inside a compiled backward.
    """
    signal, noise = groups.as_pairs(o).unbind(-2)
    of_rows = arguments.expand_lambda(lam.to(o.dtype) if isinstance(lam, Tensor) else lam, o)
    do, dweight = dout.to(o.dtype) * out_scale, None
    if norm_eps is not None:
        difference = signal - of_rows[..., None] * noise
        rstd = torch.rsqrt(difference.square().mean(-1, keepdim=True) + norm_eps)
        normed = difference * rstd
        if norm_weight is not None:
            dweight = (do * normed).flatten(0, -2).sum(0).to(norm_weight.dtype)
            do = do * norm_weight.to(o.dtype)
        do = rstd * (do - normed * (do * normed).mean(-1, keepdim=True))
    if not isinstance(lam, Tensor):
        return do, None, dweight
    dlam = -(do * noise).sum(-1)
    if lam.shape == o.shape[:-2]:  # one for each group
        dlam = dlam.unflatten(-1, (-1, groups.signals_of(o))).sum(-1)
    return do, dlam.sum_to_size(lam.shape).to(lam.dtype), dweight


def gradient_of_lse(
    do: Tensor, o: Tensor, lam: Tensor, dlse: Tensor | None, maps: Tensor
) -> Tensor:
    """As bwd_partial takes it with this q: with −D of each map, whose dS has both.

    do: of O1. lam: of each row and head. dlse: of the LSEs as the ops have them, by group. maps: q,
    of o's groups or of their pairs, each of which has a part of the noise's D.
    """
    d = ops.sums_over_columns(do.to(o.dtype)[..., None, :] * groups.as_pairs(o))
    less_d = torch.stack((-d[0], lam.transpose(-1, -2) * d[1]))  # (2, .., groups·r, seqlen_q)
    if maps.shape[-2] == o.shape[-2]:
        less_d = groups.sum_statistics(less_d, groups.signals_of(o))
    elif dlse is not None:
        dlse = groups.statistics_to_pairs(dlse, once=True)
    return less_d if dlse is None else dlse + less_d


def _per_row(statistics: Tensor) -> Tensor:
    """Of (.., groups, r + 1, seqlen_q), what broadcasts with (.., seqlen_q, groups, r + 1, dv)."""
    return statistics.movedim(-1, -3)[..., None]


def _check_components(name: str, o: Any, least_dims: int = 3) -> None:
    arguments.require_dense(name, o)
    rows = "seqlen_q, " if least_dims == 4 else ""
    words = f"{rows}groups, r + 1, headdim_v"
    if o.dim() < least_dims:
        raise ValueError(f"{name} has shape {tuple(o.shape)}, expected (.., {words})")
    groups.check_maps(name, o, words)
    if o.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {o.dtype}, accepted: {torch.float32}, {torch.float64}")


def _check_shape(name: str, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if t.shape != shape or t.dtype != dtype:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)} and dtype {t.dtype}, expected {tuple(shape)} and "
            f"{dtype}, which fit q and v"
        )


def _floating(name: str, dtype: Any) -> torch.dtype:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"{name} is {dtype!r}, accepted: None or a floating-point dtype")
    return dtype


def _check_parts(o: list[Tensor], lse: list[Tensor]) -> None:
    if not o or len(o) != len(lse):
        raise ValueError(
            f"o has {len(o)} parts, lse has {len(lse)}: expected one of each for every part, and "
            "at least one part"
        )
    for i, (part, logs) in enumerate(zip(o, lse, strict=True)):
        _check_components(f"o[{i}]", part, least_dims=4)
        arguments.require_dense(f"lse[{i}]", logs)
        *batch, seqlen_q, ngroups, maps, _ = part.shape
        expected = (*batch, ngroups, maps, seqlen_q)
        for name, t, shape in ((f"o[{i}]", part, o[0].shape), (f"lse[{i}]", logs, expected)):
            if t.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(t.shape)}, expected {tuple(shape)}, which fits o[0]: "
                    "(.., seqlen_q, groups, r + 1, headdim_v), and lse (.., groups, r + 1, "
                    "seqlen_q)"
                )
            if (t.dtype, t.device) != (o[0].dtype, o[0].device):
                raise ValueError(
                    f"{name} has dtype {t.dtype} on {t.device}, expected o[0]'s, {o[0].dtype} on "
                    f"{o[0].device}"
                )
