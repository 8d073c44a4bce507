"""Differential attention as functions of tensors (Diff Transformer, arXiv 2410.05258).

    O = softmax(s·Q1·K1ᵀ)·V − λ·softmax(s·Q2·K2ᵀ)·V

Shapes below: d is the head dim of q and k, a multiple of 8 from 8 to 128; dv, that of v, is 2·d or
d. Wrong arguments raise ValueError or TypeError, and RuntimeError where the kernel's own checks
find them; the message names the argument, what it was and what is accepted. Tensors are fp16, bf16,
fp32 or fp64 on the CPU, fp16 or bf16 on CUDA, and all on one device.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  the examples below use it
from torch import Tensor

from . import arguments, attend, autograd, groups, ops, ring_arguments, score_caps
from .arguments import Heads, Lambda, Window

# A tensor; (out, lse) with return_lse, (o, lse) with return_components. Any, so that a type checker
# lets callers use either.
Result = Any


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
) -> Result:
    """Differential attention over a dense batch; differentiable in q, k, v, lam, norm_weight.

    Args:
        q: (batch, seqlen_q, 2·nheads, d): head 2h+c is component c of head h. Or 5-D, (batch,
            seqlen_q, groups, r + 1, d), with any strides whose last is 1, so that another order of
            heads is a view: r = 1 to 8 signal maps, then the noise map that is subtracted from each
            of them. nheads is groups·r; signal i of group g is head g·r + i. fp16 or bf16; on the
            CPU also fp32 or fp64.
        k: (batch, seqlen_k, 2·nheads_k, d), or 5-D, (batch, seqlen_k, nheads_k, 2, d): K of signal
            maps, K of noise maps. With nheads_k heads (5-D: one component) both share K, as in DIFF
            V2. groups is a multiple of nheads_k: group g reads KV head g // (groups // nheads_k).
        v: (batch, seqlen_k, nheads_k, dv), or its halves, (batch, seqlen_k, nheads_k, 2, d), with
            any strides whose last is 1. Its gradient has the same form.
        lam: λ, any real: a number, or a tensor of shape (), (nheads,), (batch, seqlen_q, nheads) or
            (batch, seqlen_q, groups), in fp32 or q's dtype. It is computed in fp32; its gradient
            has its shape.
        softmax_scale: s; 1/√d if None. Not 0, which would ignore q and k.
        causal: row i sees keys j ≤ i + seqlen_k − seqlen_q (aligned bottom-right).
        window_size: (left, right): row i sees i + seqlen_k − seqlen_q − left ≤ j ≤ i + seqlen_k −
            seqlen_q + right; −1 is unbounded, and so is a value beyond any sequence, such as
            sys.maxsize. With causal, right is 0.
        sink_size: keys at the start of each sequence that stay visible to every later row, next to
            its window (attention sinks, StreamingLLM, arXiv 2309.17453). Needs causal=True. Without
            a bound on the left it changes nothing.
        streaming_heads: a bool for each of the nheads_k KV heads, in a sequence or a CPU tensor: a
            head that is False ignores window and sinks, and sees every key that causality allows
            (a retrieval head of DuoAttention, arXiv 2410.10819). None: every head streams. Needs
            causal=True, and at most 64 KV heads.
        norm_weight: (dv,), the weight of the headwise RMSNorm; None: no weight.
        norm_eps: switches the norm on: O·rsqrt(mean(O²) + norm_eps)·norm_weight.
        out_scale: multiplies the output, normed or not; 1 − λ_init in DIFF V1.
        deterministic: gradients bitwise equal from run to run (on CPU they always are).
        return_lse: also return the log-sum-exp of both maps' scores.
        return_components: return each map's own result instead, which can be merged with results of
            other keys (`merge_components`) and becomes the output in `combine_components`. It has
            neither λ nor norm: lam is not used and may be None, and norm_weight, norm_eps and
            out_scale are not accepted.
        softcap: c > 0 caps the scores before the mask: c·tanh(s·Q·Kᵀ / c). 0: no cap.

    Returns:
        out (batch, seqlen_q, nheads, dv) in q's dtype. With return_lse also lse (r + 1, batch,
        groups, seqlen_q), natural log, fp32 (fp64 for fp64 inputs), differentiable. A row that
        sees no key has O = 0 and lse = −inf.

        With return_components: o (batch, seqlen_q, groups, r + 1, dv) and lse (batch, groups, r +
        1, seqlen_q), both fp32 (fp64 for fp64 inputs), both differentiable.

    Raises:
        ValueError: a shape, device or option that does not fit the others.
        TypeError: a dense tensor, a number or a bool was expected, or λ has a dtype that is
            neither fp32 nor q's.
        RuntimeError: what the kernel's own checks find, such as a head dim; double backward.
        NotImplementedError: a forward-mode derivative (torch.func.jvp, jacfwd, dual tensors), or
            torch.func.vmap. torch.func.grad, vjp and jacrev work.

    Examples:
        >>> q, k = torch.randn(2, 1, 100, 8, 64)  # 4 heads of 2 components
        >>> v = torch.randn(1, 100, 4, 128)
        >>> lam = torch.tensor(0.8, requires_grad=True)
        >>> out, lse = diff_flash_attn_func(q, k, v, lam, causal=True, return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([1, 100, 4, 128]), torch.Size([2, 1, 4, 100]))
        >>> out.sum().backward()
        >>> lam.grad.shape
        torch.Size([])
    """
    arguments.check_tensors(q, k=k, v=v, lam=lam, norm_weight=norm_weight)
    q, k = arguments.query_heads(q, "q", 5), arguments.key_heads(k, v, "k", "v", 4)
    groups.check_key_heads(q, k, "k", k.shape[-3])
    return_lse = arguments.flag("return_lse", return_lse)
    options = (
        arguments.softmax_scale_of(softmax_scale, q),
        arguments.mask_of(window_size, causal, sink_size, streaming_heads, k.shape[-3]),
        arguments.flag("deterministic", deterministic),
        score_caps.softcap_of(softcap),
    )
    if arguments.components_asked(return_components, return_lse, norm_weight, norm_eps, out_scale):
        return attend.attend_apart(q, k, v, None, None, 0, 0, *options)
    out, lse = attend.attend(
        q, k, v, lam, None, None, 0, 0, *options, norm_weight, norm_eps, out_scale
    )
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
) -> Result:
    """Differential attention over sequences of different lengths, packed one after another.

    Arguments that are not listed are those of `diff_flash_attn_func`.

    Args:
        q: (total_q, 2·nheads, d) or (total_q, groups, r + 1, d).
        k: (total_k, 2·nheads_k, d), (total_k, nheads_k, 1 or 2, d), or V2's (total_k, nheads_k, d).
        v: (total_k, nheads_k, dv), or its halves, (total_k, nheads_k, 2, d).
        lam: per token it is (total_q, nheads) or (total_q, groups).
        cu_seqlens_q: (batch + 1,) int32 on q's device, non-decreasing from 0 to total_q: where
            each sequence starts. A length may be 0.
        cu_seqlens_k: the same of k and v, to total_k.
        max_seqlen_q: at least the longest length in q, in tokens.
        max_seqlen_k: at least the longest length in k.

    Returns:
        out (total_q, nheads, dv); with return_lse also lse (r + 1, groups, total_q). With
        return_components: o (total_q, groups, r + 1, dv) and lse (groups, r + 1, total_q).

    Raises:
        ValueError: as `diff_flash_attn_func`.
        TypeError: as `diff_flash_attn_func`.
        RuntimeError: also for wrong values in cu_seqlens: on the CPU, or under DIFFATTN_CHECK=1.
            Without it CUDA cannot read them; they then reach nothing outside the tensors.

    Examples:
        >>> q, k = torch.randn(2, 7, 8, 64)  # sequences of 5 and 2 tokens
        >>> v = torch.randn(7, 4, 128)
        >>> starts = torch.tensor([0, 5, 7], dtype=torch.int32)
        >>> out = diff_flash_attn_varlen_func(q, k, v, 0.8, starts, starts, 5, 5, causal=True)
        >>> out.shape
        torch.Size([7, 4, 128])
    """
    arguments.require_tensor("cu_seqlens_q", cu_seqlens_q)
    arguments.require_tensor("cu_seqlens_k", cu_seqlens_k)
    arguments.check_tensors(
        q, k=k, v=v, lam=lam, norm_weight=norm_weight, cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
    )  # fmt: skip
    q, k = arguments.query_heads(q, "q", 4), arguments.key_heads(k, v, "k", "v", 3)
    groups.check_key_heads(q, k, "k", k.shape[-3])
    max_seqlen_q = arguments.integer("max_seqlen_q", max_seqlen_q)
    max_seqlen_k = arguments.integer("max_seqlen_k", max_seqlen_k)
    return_lse = arguments.flag("return_lse", return_lse)
    packing = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    options = (
        arguments.softmax_scale_of(softmax_scale, q),
        arguments.mask_of(window_size, causal, sink_size, streaming_heads, k.shape[-3]),
        arguments.flag("deterministic", deterministic),
        score_caps.softcap_of(softcap),
    )
    if arguments.components_asked(return_components, return_lse, norm_weight, norm_eps, out_scale):
        return attend.attend_apart(q, k, v, *packing, *options)
    out, lse = attend.attend(q, k, v, lam, *packing, *options, norm_weight, norm_eps, out_scale)
    return (out, lse) if return_lse else out


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
) -> Result:
    """Differential attention of new queries over cached keys; appends in place. No autograd.

    Arguments that are not listed are those of `diff_flash_attn_func`.

    Args:
        k_cache: (batch_cache, seqlen_cache, 2·nheads_k, d), or paged, with block_table,
            (num_blocks, page_size, 2·nheads_k, d), page_size a multiple of 16 (on the
            CPU any size); 5-D and V2's nheads_k heads as in k. Its last stride is 1. Slots that
            hold no key are never read.
        v_cache: like k_cache, (.., .., nheads_k, dv), or its halves, (.., .., nheads_k, 2, d); on
            CUDA one half behind the other. v may have either form.
        k: (batch, seqlen_new, ..): appended to the cache at cache_seqlens, before attending. A
            slot that is appended to belongs to one sequence: pages may be shared for reading,
            but two sequences cannot append to one page or row of the cache.
        v: (batch, seqlen_new, nheads_k, dv): appended with k.
        rotary_cos: (seqlen_ro, rotary_dim / 2) in q's dtype, rotary_dim a multiple of 16 up to d:
            rotates the new k at its positions, and q from position cache_seqlens on (all rows at
            cache_seqlens with neither causal nor window). Needs k, which may have no rows.
        rotary_sin: like rotary_cos.
        cache_seqlens: int, or (batch,) int32: keys in the cache before the new ones. None: the
            cache is full, and k must be None.
        cache_batch_idx: (batch,) int32: which sequence of the cache each batch entry uses.
        cache_leftpad: (batch,) int32: how many of a sequence's first keys are invisible; at most
            cache_seqlens + seqlen_new.
        block_table: (batch, max_blocks) int32: page n of sequence b is block_table[b, n].
        rotary_interleaved: pairs are (0, 1), (2, 3), .. (GPT-J), else halves (NeoX).
        num_splits: parts that the keys are read in, concurrently; 0: chosen from the shapes.
        k_stream: (batch_cache, S + R, 2·n_stream, d), 5-D or V2's heads as in k: a ring cache of
            the heads that stream, whose size does not depend on the length; appended to in place.
            k_cache and v_cache then have the full heads alone, each kind in the order of the heads,
            and k and v have all. S is sink_size and R window_size[0] + seqlen_new, each rounded up
            to a multiple of 16. Key j of a sequence, counted from its padding, has slot j < S, or
            else S + (j − S) mod R. R may be as small as the window: a longer step attends before it
            overwrites. Needs causal=True, a bounded window, and cache_seqlens, which count for both
            caches. It has no pages: if k_cache has, its rows are those of q. Without a full head
            k_cache has 0 heads, and a sequence may be of any length.
        v_stream: like k_stream, (.., .., n_stream, dv).

    Returns:
        out (batch, seqlen_q, nheads, dv); with return_lse also lse (r + 1, batch, groups,
        seqlen_q). With return_components: o and lse as `diff_flash_attn_func` gives them, without
        gradients.

    Raises:
        ValueError: as `diff_flash_attn_func`.
        TypeError: as `diff_flash_attn_func`.
        RuntimeError: also if an argument requires a gradient, if a cache that was made under
            torch.inference_mode() is appended to outside it, and for values of the index tensors
            that point outside the cache or let two sequences append to one place: on the CPU, or
            under DIFFATTN_CHECK=1.

    Examples:
        >>> k_cache, v_cache = torch.zeros(2, 64, 8, 32), torch.zeros(2, 64, 4, 64)
        >>> cache_seqlens = torch.tensor([10, 3], dtype=torch.int32)  # tokens in it so far
        >>> q, k = torch.randn(2, 2, 1, 8, 32)  # one new token a sequence
        >>> v = torch.randn(2, 1, 4, 64)
        >>> out = diff_flash_attn_with_kvcache(
        ...     q, k_cache, v_cache, 0.8, k, v, cache_seqlens=cache_seqlens, causal=True
        ... )
        >>> out.shape
        torch.Size([2, 1, 4, 64])
        >>> torch.equal(k_cache[1, 3], k[1, 0])
        True

        Head 0 sees everything, heads 1 to 3 sinks and a window, in 16 + 32 slots at any length:

        >>> full, ring = torch.zeros(2, 1000, 1, 128), torch.zeros(2, 48, 3, 128)
        >>> k_full, v_full = full.view(2, 1000, 2, 64), full
        >>> k_ring, v_ring = ring.view(2, 48, 6, 64), ring.clone()
        >>> q, k = torch.randn(2, 2, 1, 8, 64)
        >>> v = torch.randn(2, 1, 4, 128)
        >>> out = diff_flash_attn_with_kvcache(
        ...     q, k_full, v_full.clone(), 0.8, k, v, cache_seqlens=900, causal=True,
        ...     window_size=(31, 0), sink_size=4, streaming_heads=[False, True, True, True],
        ...     k_stream=k_ring, v_stream=v_ring,
        ... )  # fmt: skip
        >>> torch.equal(v_ring[0, 16 + (900 - 16) % 32], v[0, 0, 1:])
        True
    """
    arguments.check_tensors(
        q, k_cache=k_cache, v_cache=v_cache, lam=lam, k=k, v=v, rotary_cos=rotary_cos,
        rotary_sin=rotary_sin, cache_seqlens=cache_seqlens, cache_batch_idx=cache_batch_idx,
        cache_leftpad=cache_leftpad, block_table=block_table, norm_weight=norm_weight,
        k_stream=k_stream, v_stream=v_stream,
    )  # fmt: skip
    q = arguments.query_heads(q, "q", 5)
    k_cache, k_stream = ring_arguments.cached_heads(k_cache, v_cache, k_stream, v_stream)
    nheads_k = v_cache.shape[2] + (0 if v_stream is None else v_stream.shape[2])
    groups.check_key_heads(q, k_cache, "k_cache", nheads_k)
    if k is not None and v is not None:
        k = arguments.key_heads(k, v, "k", "v", 4)
    mask = arguments.mask_of(window_size, causal, sink_size, streaming_heads, nheads_k)
    if k_stream is not None:
        ring_arguments.check_mask(mask, causal)
    return_lse = arguments.flag("return_lse", return_lse)  # before the caches are written
    apart = arguments.components_asked(
        return_components, return_lse, norm_weight, norm_eps, out_scale
    )
    norm_weight, norm_eps, out_scale = arguments.epilogue(
        norm_weight, norm_eps, out_scale, q, ops.width_of(v_cache, k_cache)
    )
    per_sequence = (block_table, cache_batch_idx, v_cache)
    of_caches = next(t for t in per_sequence if t is not None and t.dim())
    cache = (
        k, v, rotary_cos, rotary_sin, arguments.seqlens_of(cache_seqlens, q, of_caches),
        cache_batch_idx, cache_leftpad, block_table,
    )  # fmt: skip
    options = (
        arguments.softmax_scale_of(softmax_scale, q), *mask,
        arguments.flag("rotary_interleaved", rotary_interleaved),
    )  # fmt: skip
    last = (
        arguments.integer("num_splits", num_splits), k_stream, v_stream,
        score_caps.softcap_of(softcap),
    )  # fmt: skip
    maps, r = groups.for_kernel(q), groups.signals_of(q)
    if apart:
        o, lse = autograd.decode_components(maps, k_cache, v_cache, *cache, *options, *last)
        return attend.of_groups(o, lse, r)
    out, lse = autograd.decode(
        maps, k_cache, v_cache, arguments.expand_lambda(lam, q), *cache, norm_weight, *options,
        norm_eps, out_scale, *last,
    )  # fmt: skip
    return (out, groups.statistics_from_pairs(lse, r)) if return_lse else out
