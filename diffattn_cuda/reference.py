"""Differential attention in eager PyTorch: the formula itself, to be read and to be trusted.

    O = softmax(s·Q1·K1ᵀ)·V − λ·softmax(s·Q2·K2ᵀ)·V          (Diff Transformer, arXiv 2410.05258)

The three functions have the names, signatures and results of `diffattn_cuda`'s, whose docstrings
describe the arguments.  Fed fp64 they are the oracle of the tests; fed any other dtype they compute
what users write today, materialising both seqlen_q × seqlen_k maps.  Each gives the output,
(output, LSE) where return_lse is true, or each map's own where return_components is.
`deterministic`, `num_splits` and `max_seqlen_*` are accepted and change nothing here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import groups, ring
from .arguments import UNBOUNDED, Heads, Lambda, Window
from .score_caps import capped


def diff_flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Lambda | None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    norm_weight: Tensor | None = None,
    norm_eps: float | None = None,
    out_scale: float = 1.0,
    deterministic: bool = False,
    return_lse: bool = False,
    *,
    sink_size: int = 0,
    streaming_heads: Heads = None,
    return_components: bool = False,
    softcap: float = 0.0,
) -> Any:
    """Dense batches: out (batch, seqlen_q, nheads, dv), LSE (2, batch, nheads, seqlen_q).

    Examples:
        >>> import diffattn_cuda
        >>> q, k = torch.randn(2, 1, 100, 8, 64)
        >>> v = torch.randn(1, 100, 4, 128)
        >>> exact = diff_flash_attn_func(q.double(), k.double(), v.double(), 0.8)
        >>> fused = diffattn_cuda.diff_flash_attn_func(q, k, v, 0.8)
        >>> torch.allclose(fused.double(), exact, atol=1e-5)
        True
    """
    if norm_weight is not None and norm_eps is None:
        raise ValueError("norm_weight was given without norm_eps, which switches the norm on")
    q = split_components(q, q.shape[2] // 2 if q.dim() == 4 else q.shape[2])
    k, v = split_components(k, v.shape[2]), v.flatten(3)
    group, r = q.shape[2] // k.shape[2], groups.signals_of(q)  # head h reads KV head h // group
    if streaming_heads is not None:
        streaming_heads = [bool(streaming_heads[h // group]) for h in range(q.shape[2])]
    p, lse, empty = _maps_and_empty_rows(
        q, k.repeat_interleave(group, dim=2), softmax_scale, causal, window_size, sink_size,
        streaming_heads, softcap,
    )  # fmt: skip
    v = v.repeat_interleave(group, dim=2).transpose(1, 2)  # (b, h, sk, dv)
    if return_components:
        o = (p.to(v.dtype) @ v).to(p.dtype)  # (r + 1, b, h, sq, dv)
        return o.permute(1, 3, 2, 0, 4), lse.permute(1, 2, 0, 3)
    if lam is None:
        raise TypeError("lam is None, accepted: a number or a tensor; None with return_components")
    lam = groups.lambda_per_row(lam, p.dtype, q.shape[2], r)
    p_diff = p[:-1].permute(1, 2, 0, 3, 4) - lam * p[-1][:, :, None]  # (b, h, r, sq, sk)
    out = (p_diff.to(v.dtype) @ v[:, :, None]).to(p.dtype)  # (b, h, r, sq, dv)
    empty = empty if empty.dim() == 1 else empty[:, None]
    out = out.masked_fill(empty[..., None], 0.0)  # also where λ is NaN
    out = out.flatten(1, 2).transpose(1, 2)
    if norm_eps is not None:
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + norm_eps)
    if norm_weight is not None:
        out = out * norm_weight
    out = (out * out_scale).to(q.dtype)
    return (out, lse) if return_lse else out


def diff_flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Lambda | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    norm_weight: Tensor | None = None,
    norm_eps: float | None = None,
    out_scale: float = 1.0,
    deterministic: bool = False,
    return_lse: bool = False,
    *,
    sink_size: int = 0,
    streaming_heads: Heads = None,
    return_components: bool = False,
    softcap: float = 0.0,
) -> Any:
    """Packed sequences: out (total_q, nheads, dv), LSE (2, nheads, total_q).

    Examples:
        >>> q, k = torch.randn(2, 7, 8, 64)
        >>> v, cu_seqlens = torch.randn(7, 4, 128), torch.tensor([0, 5, 7])
        >>> diff_flash_attn_varlen_func(q, k, v, 0.8, cu_seqlens, cu_seqlens, 5, 5).shape
        torch.Size([7, 4, 128])
    """
    dv, dtype = v[:0].flatten(2).shape[-1], _accumulate_dtype(q)
    nheads, maps = (q.shape[1] // 2, 2) if q.dim() == 3 else q.shape[1:3]
    outs = [q.new_zeros(0, nheads * (maps - 1), dv)]
    lses = [q.new_zeros(maps, nheads, 0, dtype=dtype)]
    if return_components:
        outs = [q.new_zeros(0, nheads, maps, dv, dtype=dtype)]
        lses = [q.new_zeros(nheads, maps, 0, dtype=dtype)]
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(starts_q) - 1):
        rows = slice(starts_q[i], starts_q[i + 1])
        keys = slice(starts_k[i], starts_k[i + 1])
        lam_i = lam[None, rows] if isinstance(lam, Tensor) and lam.dim() == 2 else lam
        out, lse = diff_flash_attn_func(
            q[None, rows], k[None, keys], v[None, keys], lam_i,
            softmax_scale, causal, window_size, norm_weight, norm_eps, out_scale,
            return_lse=not return_components, sink_size=sink_size,
            streaming_heads=streaming_heads, return_components=return_components, softcap=softcap,
        )  # fmt: skip
        outs.append(out[0])
        lses.append(lse[0] if return_components else lse[:, 0])
    out, lse = torch.cat(outs), torch.cat(lses, dim=-1)
    return (out, lse) if return_lse or return_components else out


@torch.no_grad()
def diff_flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lam: Lambda | None,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    rotary_interleaved: bool = True,
    norm_weight: Tensor | None = None,
    norm_eps: float | None = None,
    out_scale: float = 1.0,
    num_splits: int = 0,
    return_lse: bool = False,
    *,
    sink_size: int = 0,
    streaming_heads: Heads = None,
    return_components: bool = False,
    k_stream: Tensor | None = None,
    v_stream: Tensor | None = None,
    softcap: float = 0.0,
) -> Any:
    """Decoding: append k, v to the caches in place, then attend to the valid slots only.

    Examples:
        >>> k_cache, v_cache = torch.zeros(1, 64, 8, 32), torch.zeros(1, 64, 4, 64)
        >>> q, k = torch.randn(2, 1, 1, 8, 32)
        >>> v = torch.randn(1, 1, 4, 64)
        >>> out = diff_flash_attn_with_kvcache(q, k_cache, v_cache, 0.8, k, v, cache_seqlens=0)
        >>> torch.allclose(out, 0.2 * v)  # of one key: P1 = P2 = 1
        True
    """
    batch, seqlen_q = q.shape[:2]
    if k is not None and cache_seqlens is None:
        raise ValueError("cache_seqlens is None (a full cache), but k is to be appended")
    if rotary_cos is not None and k is None:
        raise ValueError("rotary_cos was given without k: rotary is applied as keys are appended")
    if k_stream is not None and v_stream is not None:
        nheads_k, q = v_cache.shape[2] + v_stream.shape[2], split_components(q, q.shape[2] // 2)
        out, lse = ring.attend_by_kind(
            diff_flash_attn_with_kvcache, q,
            k_cache, v_cache, lam, None if k is None else split_components(k, nheads_k), v,
            split_components(k_stream, v_stream.shape[2]), v_stream, streaming_heads,
            mask={"window_size": window_size, "sink_size": sink_size},
            places={
                "cache_seqlens": cache_seqlens, "cache_batch_idx": cache_batch_idx,
                "cache_leftpad": cache_leftpad, "block_table": block_table,
            },
            rotary_cos=rotary_cos, rotary_sin=rotary_sin, rotary_interleaved=rotary_interleaved,
            softmax_scale=softmax_scale, norm_weight=norm_weight, norm_eps=norm_eps,
            out_scale=out_scale, return_lse=not return_components,
            return_components=return_components, softcap=softcap,
        )  # fmt: skip
        return (out, lse) if return_lse or return_components else out
    page = v_cache.shape[1]
    capacity = page if block_table is None else block_table.shape[1] * page
    seqlens = _per_sequence(cache_seqlens, batch, default=capacity)
    leftpads = _per_sequence(cache_leftpad, batch, default=0)

    outs, lses = [], []
    for i in range(batch):
        if block_table is not None:
            there = range(v_cache.shape[0])  # an entry that no row sees may be anything
            pages = [entry if entry in there else 0 for entry in block_table[i].tolist()]
        else:
            pages = [i if cache_batch_idx is None else int(cache_batch_idx[i])]
        q_i, seqlen = q[i : i + 1], seqlens[i]
        if k is not None and v is not None:
            k_new, appended = k[i : i + 1], range(seqlen, seqlen + k.shape[1])
            if rotary_cos is not None and rotary_sin is not None:
                ordered = causal or any(0 <= side < UNBOUNDED for side in window_size)
                places = [seqlen + t if ordered else seqlen for t in range(seqlen_q)]
                q_i = apply_rotary(q_i, rotary_cos[places], rotary_sin[places], rotary_interleaved)
                k_new = apply_rotary(
                    k_new,
                    rotary_cos[list(appended)],
                    rotary_sin[list(appended)],
                    rotary_interleaved,
                )
            slots = _slots(appended, pages, page)
            k_cache[slots] = k_new[0].reshape(k.shape[1], *k_cache.shape[2:])
            v_cache[slots] = v[i].reshape(v.shape[1], *v_cache.shape[2:])
            seqlen += k.shape[1]
        slots = _slots(range(min(leftpads[i], seqlen), seqlen), pages, page)
        lam_i = lam[i : i + 1] if isinstance(lam, Tensor) and lam.dim() == 3 else lam
        out, lse = diff_flash_attn_func(
            q_i, k_cache[slots][None], v_cache[slots][None], lam_i,
            softmax_scale, causal, window_size, norm_weight, norm_eps, out_scale,
            return_lse=not return_components, sink_size=sink_size,
            streaming_heads=streaming_heads, return_components=return_components, softcap=softcap,
        )  # fmt: skip
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs), torch.cat(lses, dim=0 if return_components else 1)
    return (out, lse) if return_lse or return_components else out


def attention_maps(
    q: Tensor,
    k: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    sink_size: int = 0,
    streaming_heads: Heads = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Both softmax maps, P1 and P2, and their log-sum-exp.

    Args:
        q: (batch, seqlen_q, nheads, 2, d).
        k: (batch, seqlen_k, nheads, 2, d), or 1 for 2 where both components share the key.
        softmax_scale: as in `diffattn_cuda.diff_flash_attn_func`.
        causal: as there.
        window_size: as there.
        sink_size: as there.
        streaming_heads: a bool for each of the nheads heads here.
        softcap: as there.

    Returns:
        P (2, batch, nheads, seqlen_q, seqlen_k) and LSE (2, batch, nheads, seqlen_q), in fp32 (fp64
        for fp64).  A row that sees no key has P = 0 and LSE = −inf.

    Examples:
        >>> q, k = torch.randn(2, 1, 100, 4, 2, 64)
        >>> p, lse = attention_maps(q, k, causal=True)
        >>> p.shape, lse.shape
        (torch.Size([2, 1, 4, 100, 100]), torch.Size([2, 1, 4, 100]))
    """
    p, lse, _ = _maps_and_empty_rows(
        q, k, softmax_scale, causal, window_size, sink_size, streaming_heads, softcap
    )
    return p, lse


def _maps_and_empty_rows(
    q: Tensor,
    k: Tensor,
    softmax_scale: float | None,
    causal: bool,
    window_size: Window,
    sink_size: int,
    streaming_heads: Heads,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_maps`, and which rows see no key: bool (seqlen_q,) or (nheads, seqlen_q)."""
    seqlen_q, seqlen_k, d = q.shape[1], k.shape[1], q.shape[-1]
    scale = d**-0.5 if softmax_scale is None else softmax_scale
    q = q.permute(3, 0, 2, 1, 4)  # (r + 1, b, h, sq, d)
    k = k.permute(3, 0, 2, 4, 1)  # (2 or 1, b, h, d, sk)
    k = k if len(k) == 1 or len(q) == 2 else k[[0] * (len(q) - 1) + [1]]
    s = (q @ k).to(_accumulate_dtype(q)) * scale  # (r + 1, b, h, sq, sk)
    s = capped(s, softcap)
    visible = visible_keys(seqlen_q, seqlen_k, causal, window_size, q.device, sink_size)
    if streaming_heads is not None:
        streams = torch.as_tensor(streaming_heads, device=q.device)[:, None, None]  # (h, 1, 1)
        full = visible_keys(seqlen_q, seqlen_k, causal, (-1, -1), q.device)
        visible = torch.where(streams, visible, full)  # (h, sq, sk)
    empty = ~visible.any(-1)  # (sq,) or (h, sq)
    s = s.masked_fill(~visible, float("-inf"))
    # Softmax of an empty row is NaN, and so is its gradient, which the mask above turns into 0.
    p = s.softmax(-1).masked_fill(empty[..., None], 0.0)
    return p, s.logsumexp(-1), empty


def visible_keys(
    seqlen_q: int,
    seqlen_k: int,
    causal: bool,
    window_size: Window,
    device: torch.device | str,
    sink_size: int = 0,
) -> Tensor:
    """Bool (seqlen_q, seqlen_k): row i sees key j.  Bottom-right aligned; window inclusive.

    The first sink_size keys are seen whatever the window's left side is.

    Examples:
        >>> visible_keys(2, 4, causal=True, window_size=(1, -1), device="cpu").int()
        tensor([[0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
        >>> visible_keys(2, 4, causal=True, window_size=(0, -1), device="cpu", sink_size=1).int()
        tensor([[1, 0, 1, 0],
                [1, 0, 0, 1]], dtype=torch.int32)
    """
    # No row sees further than all keys, and int64 sums overflow near sys.maxsize.
    left, right = (min(side, seqlen_q + seqlen_k) for side in window_size)
    right = 0 if causal else right
    row = torch.arange(seqlen_q, device=device)[:, None] + seqlen_k - seqlen_q
    key = torch.arange(seqlen_k, device=device)
    visible = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=device)
    if left >= 0:
        visible &= (key >= row - left) | (key < min(sink_size, seqlen_k))
    if right >= 0:
        visible &= key <= row + right
    return visible


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """Rotate the first 2·rotary_dim/2 features of every head; the rest passes unchanged.

    Args:
        x: (batch, seqlen, ..., d).
        cos: (seqlen, rotary_dim/2), one row per position of x.
        sin: like cos.
        interleaved: pairs are features (2i, 2i+1), GPT-J's style; otherwise (i, i + rotary_dim/2),
            GPT-NeoX's.

    Returns:
        Like x; computed in fp32 (fp64 for fp64) and rounded once.

    Examples:
        >>> x, angle = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([[torch.pi / 2]])
        >>> apply_rotary(x, angle.cos(), angle.sin()).flatten().round().abs().tolist()
        [0.0, 1.0]
    """
    half = cos.shape[-1]
    acc = _accumulate_dtype(x)
    shape = (x.shape[1], *[1] * (x.dim() - 3), half)
    cos, sin = cos.to(acc).view(shape), sin.to(acc).view(shape)
    rotated, rest = x[..., : 2 * half].to(acc), x[..., 2 * half :]
    a, b = rotated.unflatten(-1, (half, 2)).unbind(-1) if interleaved else rotated.chunk(2, dim=-1)
    a, b = a * cos - b * sin, a * sin + b * cos
    rotated = torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)
    return torch.cat((rotated.to(x.dtype), rest), -1)


def split_components(x: Tensor, nheads: int) -> Tensor:
    """(b, s, 2·nheads | nheads, d) → (b, s, nheads, 2 | 1, d): head 2h+c is component c of h.

    Examples:
        >>> split_components(torch.zeros(1, 100, 8, 64), nheads=4).shape
        torch.Size([1, 100, 4, 2, 64])
    """
    return x if x.dim() == 5 else x.unflatten(2, (nheads, x.shape[2] // nheads))


def _accumulate_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _per_sequence(value: int | Tensor | None, batch: int, default: int) -> list[int]:
    if isinstance(value, Tensor):
        return value.tolist()
    return [default if value is None else value] * batch


def _slots(positions: range, pages: list[int], page: int) -> tuple[list[int], list[int]]:
    """Where in the cache a sequence's positions lie: (rows or blocks, slots within them)."""
    return [pages[p // page] for p in positions], [p % page for p in positions]
