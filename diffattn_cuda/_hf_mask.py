"""What DiffLlama's attention has to know about its mask, found once per forward of the model.

    None                         every key before a row is visible
    (b, 1, 1, 1) int32           padding on the left: how many keys of each sequence are hidden
    (b, 1, 1, seqlen_k) bool     which keys are visible
    (n + 1,) int32               cu_seqlens of packed documents over all rows of the batch

Masks have four dimensions because transformers hands such a mask on untouched: generate() makes the
mask of a compiled step outside the compiled function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import causal_mask_function


def describe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    device: Any = None,
    **unused: Any,
) -> Tensor | None:
    """The mask of attn_implementation="diffattn", in transformers' AttentionMaskInterface."""
    if not getattr(config, "is_causal", True):
        raise NotImplementedError(
            'attn_implementation="diffattn" is causal, config.is_causal is not'
        )
    if attention_mask is not None:
        return describe_padding(attention_mask, q_length, kv_length, q_offset)
    # In a compiled graph every mask function looks like one of packed documents.
    if mask_function is causal_mask_function or torch.compiler.is_compiling():
        return None
    return documents(mask_function, batch_size, q_length, device)


def describe_padding(
    attention_mask: Tensor, q_length: int, kv_length: int, q_offset: int | Tensor
) -> Tensor | None:
    """attention_mask: (b, n) bool. As in eager attention, keys it does not reach are hidden."""
    if not torch.compiler.is_compiling():
        written = min(int(q_offset) + q_length, kv_length)  # a static cache has room for more
        known = attention_mask[:, :written]
        if known.shape[1] == written:
            on_the_left = known[:, 1:] >= known[:, :-1]
            all_visible, left_padded = torch.stack([known.all(), on_the_left.all()]).tolist()
            if all_visible:
                return None
            if left_padded:
                return (~known).sum(1, dtype=torch.int32)[:, None, None, None]
    visible = attention_mask[:, :kv_length]
    return pad(visible, (0, kv_length - visible.shape[1]), value=False)[:, None, None, :]


def documents(mask_function: Any, batch_size: int, seqlen: int, device: Any) -> Tensor:
    """cu_seqlens of packed documents: one starts where a row does not see the key before it."""
    batch = torch.arange(batch_size, device=device)[:, None]
    here = torch.arange(1, seqlen, device=device)
    if mask_function(batch, 0, here - 1, here).any():
        raise NotImplementedError(
            'attn_implementation="diffattn" takes no mask that shows the future'
        )
    starts = ~mask_function(batch, 0, here, here - 1).expand(batch_size, -1)  # (b, seqlen - 1)
    starts = pad(starts, (1, 0), value=True).flatten().nonzero().flatten()
    return pad(starts, (0, 1), value=batch_size * seqlen).to(torch.int32)


def require(holds: Tensor, otherwise: str) -> None:
    """An error unless `holds`, (); a compiled graph asks while it runs, without a graph break."""
    if torch.compiler.is_compiling():
        torch._assert_async(holds, otherwise)
    elif not holds:
        raise NotImplementedError(otherwise)
