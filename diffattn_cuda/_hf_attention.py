"""The forward of transformers' DiffLlamaAttention with one fused call; `hf.register` puts it there.

Heads are pairs here: q (b, seqlen, H, 2, d), k (b, seqlen, Hk, 2, d), and v in halves, (b, seqlen,
Hk, 2, d), all of them views; from a cache v is (b, seqlen, Hk, 2d).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.models.diffllama.modeling_diffllama import apply_rotary_pos_emb

from ._hf_mask import require
from .functional import (
    diff_flash_attn_func,
    diff_flash_attn_varlen_func,
    diff_flash_attn_with_kvcache,
)

RESET = (
    "position_ids do not rise by one from token to token, which says packed documents, and {where} "
    'attn_implementation="diffattn" cannot keep those apart: {instead}'
)


def fused_forward(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """DiffLlamaAttention.forward; attention_mask is what `_hf_mask` describes."""
    refuse_options(attention_mask, **kwargs)
    heads = (*hidden_states.shape[:2], -1, module.head_dim)
    projections = (module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (project(hidden_states).view(heads).transpose(1, 2) for project in projections)
    q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
    q, k, v = (pairs(x.transpose(1, 2)) for x in (q, k, v))
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast rotary tables are fp32
    packed = packing(module, attention_mask, cache, q.shape[1], **kwargs)
    room = None  # how many keys a static cache holds
    if cache is not None:
        k, v, room = append(module, k, v, cache)
        k, v = k.to(q.dtype), v.to(q.dtype)  # a cache may have been filled outside autocast
    lam = lambda_full(module)
    options: dict[str, Any] = {
        "softmax_scale": module.scaling,
        "norm_eps": module.groupnorm.eps,
        "out_scale": 1 - module.lambda_init,
    }
    if packed is not None:
        if k.shape[1] != q.shape[1]:
            raise NotImplementedError(
                'attn_implementation="diffattn" takes packed documents whole, not behind a cache'
            )
        out = attend_to_documents(q, k, v, lam, *packed, **options)
    elif k.shape[1] > q.shape[1] or room is not None:
        out = attend_to_cache(q, k, v, lam, attention_mask, room, **options)
    elif attention_mask is None:
        out = diff_flash_attn_func(q, k, v, lam, causal=True, **options)
    else:
        out = attend_to_visible(q, k, v, lam, visible_keys(attention_mask, k), **options)
    return module.o_proj(out.flatten(2)), None


def refuse_options(
    attention_mask: Tensor | None,
    output_attentions: bool = False,
    is_causal: bool | None = None,
    **others: Any,
) -> None:
    """What other implementations do and a kernel that never has a whole map cannot."""
    refused = 'attn_implementation="diffattn" does not take {}: use "eager"'
    if output_attentions:
        raise NotImplementedError(refused.format("output_attentions=True"))
    if is_causal is False:
        raise NotImplementedError(refused.format("is_causal=False"))
    if attention_mask is None or attention_mask.dtype == torch.int32:
        return
    if attention_mask.dtype != torch.bool or attention_mask.shape[1:3] != (1, 1):
        shape = f"of shape {tuple(attention_mask.shape)} and dtype {attention_mask.dtype}"
        wanted = "(batch, seqlen), which says which tokens are there,"
        raise NotImplementedError(
            refused.format(f"an attention_mask {shape}; it takes one of shape {wanted}")
        )


def pairs(x: Tensor) -> Tensor:
    """(b, s, 2·n, d), first all heads of component 1, then of 2, as (b, s, n, 2, d): a view."""
    return x.unflatten(2, (2, -1)).transpose(2, 3)


def lambda_full(module: Any) -> Tensor:
    """λ, () in fp32. DiffLlama rounds it to q's dtype: in bf16 it is off by up to 0.01."""
    lambda_1 = (module.lambda_q1 * module.lambda_k1).sum(dtype=torch.float32).exp()
    lambda_2 = (module.lambda_q2 * module.lambda_k2).sum(dtype=torch.float32).exp()
    return lambda_1 - lambda_2 + module.lambda_init


def packing(
    module: Any,
    attention_mask: Tensor | None,
    cache: Any,
    rows: int,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: Any = None,
    max_length_k: Any = None,
    **others: Any,
) -> tuple[Tensor, Tensor, int, int] | None:
    """(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k) of packed documents, or None.

    The caller's cu_seq_lens come first; without them the mask has found where position_ids start
    anew, but not in a compiled graph and not next to a cache.
    """
    described = attention_mask is not None and attention_mask.dim() == 1
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        if cu_seq_lens_q is None or cu_seq_lens_k is None:
            raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together")
        if attention_mask is not None and not described:
            raise NotImplementedError(
                'attn_implementation="diffattn" takes an attention_mask or cu_seq_lens, not both'
            )
        total = cu_seq_lens_q.device, torch.int32
        longest = [n if isinstance(n, int) else None for n in (max_length_q, max_length_k)]
        return (
            cu_seq_lens_q.to(*total), cu_seq_lens_k.to(*total), longest[0] or rows,
            longest[1] or rows,
        )  # fmt: skip
    if described:
        assert attention_mask is not None
        return attention_mask, attention_mask, rows, rows
    if attention_mask is None and position_ids is not None and rows > 1 and module.layer_idx == 0:
        step = position_ids.diff(dim=-1)
        if cache is not None:
            reset = RESET.format(where="next to a cache", instead="pass use_cache=False")
            require((step > 0).all(), reset)
        else:
            where = "next to an attention_mask or in a compiled model"
            reset = RESET.format(where=where, instead="pass cu_seq_lens_q, .., max_length_k")
            require((step == 1).all(), reset)
    return None


def append(module: Any, k: Tensor, v: Tensor, cache: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """The cache's keys and values, and how many of a static cache's are there, (), else None.

    To the cache a head is a pair, 2d wide, so that a step copies no key and no value; views lead
    back.
    """
    index, width = module.layer_idx, 2 * module.head_dim
    layer = known_layer(cache, index)
    if layer is not None and layer.is_initialized and layer.keys.shape[1:2] == (2 * k.shape[2],):
        # generate() may make room in DiffLlama's own shape: the same bytes, another view.
        empty = torch.as_tensor(layer.get_seq_length() == 0)
        require(empty, 'the cache was filled by another attn_implementation than "diffattn"')
        shape = (k.shape[0], k.shape[2], -1, width)
        layer.keys, layer.values = layer.keys.view(shape), layer.values.view(shape)
    k, v = (x.flatten(3).transpose(1, 2) for x in (k, v))
    k, v = cache.update(k, v, index)
    k, v = k.transpose(1, 2).unflatten(3, (2, -1)), v.transpose(1, 2)
    static = type(cache.layers[index]) is StaticLayer
    return k, v, cache.get_seq_length(index) if static else None


def known_layer(cache: Any, index: int) -> Any:
    """The cache's layer, or None where update() will make it; an error where it is of another kind.

    A sliding layer forgets keys that DiffLlama's mask shows, and quantized ones round in groups
    that the other shape of a head would cut differently.
    """
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    made = getattr(cache, "layer_class_to_replicate", None)
    kind = made if layer is None else type(layer)
    if kind is DynamicLayer or kind is StaticLayer:
        return layer
    name = f"{type(cache).__name__} of {kind.__name__}" if kind else type(cache).__name__
    raise NotImplementedError(
        f'attn_implementation="diffattn" takes a cache of DynamicLayer or StaticLayer, got {name}: '
        'use "eager"'
    )


def visible_keys(attention_mask: Tensor, k: Tensor) -> Tensor:
    """(b, seqlen_k) bool of either description of a mask."""
    if attention_mask.dtype == torch.bool:
        return attention_mask[:, 0, 0]
    return torch.arange(k.shape[1], device=k.device) >= attention_mask[:, 0, 0]


def attend_to_documents(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int,
    max_k: int, **options: Any,
) -> Tensor:  # fmt: skip
    """Sequences packed into rows, the last row of each seeing all its keys."""
    q_rows, k_rows, v_rows = (x.flatten(0, 1) for x in (q, k, v))
    out = diff_flash_attn_varlen_func(
        q_rows, k_rows, v_rows, lam, cu_q, cu_k, max_q, max_k, causal=True, **options
    )
    return out.unflatten(0, q.shape[:2])


def attend_to_visible(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, visible: Tensor, **options: Any
) -> Tensor:
    """A prompt or a training step some of whose keys are hidden, at shapes that no value decides.

    Each sequence is sorted: visible keys in front, and in front of the other rows those that have a
    place among them. Time runs backwards there, because the kernel aligns the last row with the
    last key, while padding on the right asks that the first row meet the first key. The rest, rows
    of holes and of padding on the left, forms sequences without a key, whose output is 0.
    """
    batch, seqlen = visible.shape
    position = torch.arange(seqlen, device=q.device)
    last = (visible * position).amax(1, keepdim=True)
    placed = visible | (position > last)  # padding on the right sees all visible keys
    rows, keys = backwards(placed, position), backwards(visible, position)
    n_rows, n_keys, none = placed.sum(1), visible.sum(1), visible.new_zeros(batch, dtype=torch.long)
    cu_q = cu_seqlens(n_rows, seqlen - n_rows, none)
    cu_k = cu_seqlens(n_keys, none, seqlen - n_keys)
    out = diff_flash_attn_varlen_func(
        take(q, rows).flatten(0, 1), take(k, keys).flatten(0, 1), take(v, keys).flatten(0, 1),
        lam, cu_q, cu_k, seqlen, seqlen, window_size=(0, -1), **options,
    )  # fmt: skip
    out = take(out.unflatten(0, (batch, seqlen)), rows.argsort(1))
    blind = visible.cumsum(1) == 0
    return torch.where(blind[:, :, None, None], attend_blindly(q, v, lam, **options), out)


def backwards(first: Tensor, position: Tensor) -> Tensor:
    """The order, (b, s), that brings positions in `first` to the front, the latest foremost."""
    return torch.where(first, -position, position + 1).argsort(1)


def take(x: Tensor, order: Tensor) -> Tensor:
    """x (b, s, ..) in another order of its positions, (b, s)."""
    batch, seqlen = order.shape
    index = order + seqlen * torch.arange(batch, device=order.device)[:, None]
    return x.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, (batch, seqlen))


def cu_seqlens(*lengths: Tensor) -> Tensor:
    """Of sequences that take turns: the first of each (b,), the second of each, .."""
    return pad(torch.stack(lengths, 1).flatten().cumsum(0), (1, 0)).to(torch.int32)


def attend_blindly(
    q: Tensor, v: Tensor, lam: Tensor, softmax_scale: float, norm_eps: float, out_scale: float
) -> Tensor:
    """Rows that see no key, (b, 1, H, 2d): eager attention gives all keys the same weight there."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    o = (1 - lam) * v.mean(1, keepdim=True, dtype=dtype).flatten(3)  # (b, 1, Hk, 2d)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + norm_eps) * out_scale
    return o.to(q.dtype).repeat_interleave(q.shape[2] // v.shape[2], 2)


def attend_to_cache(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, attention_mask: Tensor | None,
    room: Tensor | None, **options: Any,
) -> Tensor:  # fmt: skip
    """New rows behind the keys of a cache. A row that sees no key is 0: nothing will read it."""
    batch, seqlen_k = k.shape[:2]
    end = torch.full((batch,), seqlen_k, device=k.device) if room is None else room.expand(batch)
    start = torch.zeros_like(end)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, lam))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        if needs_gradient:
            raise NotImplementedError(
                'attn_implementation="diffattn" has no gradient behind a cache under this '
                "attention_mask: it takes padding on the left, not in a compiled model"
            )
        return attend_row_by_row(q, k, v, lam, attention_mask[:, 0, 0], end, **options)
    if attention_mask is not None:
        start = attention_mask.flatten()
    if needs_gradient:
        none = torch.zeros_like(end)
        cu_q = cu_seqlens(none, none + q.shape[1], none)
        cu_k = cu_seqlens(start, end - start, seqlen_k - end)
        return attend_to_documents(q, k, v, lam, cu_q, cu_k, q.shape[1], seqlen_k, **options)
    return diff_flash_attn_with_kvcache(
        q, k, v, lam, cache_seqlens=end.to(torch.int32), cache_leftpad=start.to(torch.int32),
        causal=True, **options,
    )  # fmt: skip


def attend_row_by_row(
    q: Tensor, k: Tensor, v: Tensor, lam: Tensor, visible: Tensor, end: Tensor, **options: Any
) -> Tensor:
    """Any mask, and right for hidden rows too: generate() reads the last, hidden or not.

    Visible keys are brought to the front, a copy of the cache; then a row sees the first few of
    them, and each row is a sequence of its own. That costs more than a block of rows, but at one
    new token a step there is one row.
    """
    batch, rows = q.shape[:2]
    keys = (~visible).int().argsort(dim=1, stable=True)
    own = end[:, None] - rows + torch.arange(rows, device=q.device)  # (b, rows)
    seen = visible.int().cumsum(1).gather(1, own)
    out = diff_flash_attn_with_kvcache(
        q.flatten(0, 1)[:, None], take(k, keys), take(v, keys), lam,
        cache_seqlens=seen.flatten().to(torch.int32),
        cache_batch_idx=torch.arange(batch, device=q.device, dtype=torch.int32)
        .repeat_interleave(rows), **options,
    )  # fmt: skip
    return out[:, 0].unflatten(0, (batch, rows))
