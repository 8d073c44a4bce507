"""Inputs of the self-test, and what they give in fp64.

All numbers are bf16 values that fp16 has too, so that one exact result serves every dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..ring import Ring

NHEADS, NHEADS_K = 2, 1
SIGNALS = 3  # that share a noise map, where maps are in groups: NHEADS of these
# More than one tile each way in every kernel (at most 128 query rows, 96 keys), and a ragged end.
SEQLEN_Q, SEQLEN_K = 131, 197
CU_SEQLENS_Q, CU_SEQLENS_K = (0, 70, 70, 131), (0, 101, 106, 197)  # one sequence has no query
CACHED, CAPACITY, PAGE = (190, 65, 0), 224, 16  # tokens of each sequence before the call
STREAMING: dict[str, Any] = {"causal": True, "window_size": (30, 0), "sink_size": 9}
MASKS: tuple[dict[str, Any], ...] = ({"causal": True}, {}, {"window_size": (40, 9)}, STREAMING)

CACHES = ("k_cache", "v_cache", "k_stream", "v_stream")

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One call: tensors in fp64, by argument, and its options."""

    tensors: Results
    options: dict[str, Any]
    results: Results  # of the reference
    dout: Tensor | None = None
    layout: dict[str, Any] = field(default_factory=dict)  # integers of a packed batch or of a cache


def _maps(signals: int) -> tuple[int, ...]:
    """The dimensions of q's heads and maps."""
    return (2 * NHEADS,) if signals == 1 else (NHEADS, signals + 1)


class Draw:
    """Normal numbers with seven bits of mantissa; none so small that fp16 would round it."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self._generator).bfloat16().double()
        return x.masked_fill(x.abs() < 2.0**-14, 0.0)


def _cap(d: int) -> dict[str, Any]:
    """One width of each kernel has its scores capped."""
    return {"softcap": 2.0} if d // 8 % 4 == 2 else {}


@lru_cache(maxsize=16)
def dense(d: int, dv: int, packed: bool, signals: int = 1) -> Problem:
    """A training step: V1 (dv = 2d) has a norm, V2 (dv = d) one K for both components."""
    draw, wide = Draw(d + dv), dv == 2 * d
    lengths = (SEQLEN_Q, SEQLEN_K) if packed else (1, SEQLEN_Q, 1, SEQLEN_K)
    rows, keys = lengths[: len(lengths) // 2], lengths[len(lengths) // 2 :]
    tensors = {
        "q": draw(*rows, *_maps(signals), d),
        "k": draw(*keys, (2 if wide else 1) * NHEADS_K, d),
        "v": draw(*keys, NHEADS_K, dv),
        "lam": draw(*rows, NHEADS * signals),
    }
    options: dict[str, Any] = MASKS[d // 8 % len(MASKS)] | _cap(d)
    if wide:
        tensors["norm_weight"] = draw(dv)
        options |= {"norm_eps": 1e-5, "out_scale": 0.25}
    layout: dict[str, Any] = {}
    if packed:
        layout = {
            "cu_seqlens_q": torch.tensor(CU_SEQLENS_Q, dtype=torch.int32),
            "cu_seqlens_k": torch.tensor(CU_SEQLENS_K, dtype=torch.int32),
            "max_seqlen_q": 70,
            "max_seqlen_k": 101,
        }
    dout = draw(*rows, NHEADS * signals, dv)
    name = "diff_flash_attn_varlen_func" if packed else "diff_flash_attn_func"
    leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    out, lse = getattr(reference, name)(**leaves, **layout, **options, return_lse=True)
    grads = torch.autograd.grad(out, list(leaves.values()), dout)
    results = {"out": out.detach(), "lse": lse.detach()}
    results |= {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return Problem(tensors, options, results, dout, layout)


@lru_cache(maxsize=16)
def cached(d: int, dv: int, paged: bool, signals: int = 1) -> Problem:
    """A step of decoding that appends its tokens to caches of three lengths.

    The contiguous cache gets 20 tokens a sequence (many query rows), the paged one a token with a
    rotary embedding, and its keys in three splits (few rows).
    """
    draw, batch, new = Draw(d + dv + 1), len(CACHED), 1 if paged else 20
    heads = (2 if dv == 2 * d else 1) * NHEADS_K
    blocks, slots = (batch * CAPACITY // PAGE, PAGE) if paged else (batch, CAPACITY)
    tensors = {
        "q": draw(batch, new, *_maps(signals), d),
        "k_cache": draw(blocks, slots, heads, d),
        "v_cache": draw(blocks, slots, NHEADS_K, dv),
        "lam": draw(NHEADS * signals),
        "k": draw(batch, new, heads, d),
        "v": draw(batch, new, NHEADS_K, dv),
    }
    layout: dict[str, Any] = {"cache_seqlens": torch.tensor(CACHED, dtype=torch.int32)}
    options: dict[str, Any] = (STREAMING if d // 8 % 2 else MASKS[0]) | _cap(d)
    if paged:
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(d))
        layout["block_table"] = order.reshape(batch, -1).to(torch.int32)
        if d >= 16:
            tensors["rotary_cos"] = draw(CAPACITY, d // 16 * 8)
            tensors["rotary_sin"] = draw(CAPACITY, d // 16 * 8)
        options["num_splits"] = 3
    return _decoded(tensors, options, layout)


@lru_cache(maxsize=16)
def ring(d: int, dv: int) -> Problem:
    """A step over a cache of one head and a ring of another, before the wrap and behind it.

    Two tokens overwrite what is seen if they are written first, because the ring has no slack.
    """
    draw, batch, new = Draw(d + dv + 2), len(CACHED), 2
    components = 2 if dv == 2 * d else 1
    slots = Ring.of_step(STREAMING["sink_size"], STREAMING["window_size"][0] + 1, 1).slots
    tensors = {
        "q": draw(batch, new, 2 * NHEADS, d),
        "k_cache": draw(batch, CAPACITY, components, d),
        "v_cache": draw(batch, CAPACITY, 1, dv),
        "lam": draw(NHEADS),
        "k": draw(batch, new, 2 * components, d),
        "v": draw(batch, new, 2, dv),
        "k_stream": draw(batch, slots, components, d),
        "v_stream": draw(batch, slots, 1, dv),
    }
    layout = {"cache_seqlens": torch.tensor(CACHED, dtype=torch.int32)}
    return _decoded(tensors, STREAMING | {"streaming_heads": [False, True]}, layout)


def _decoded(tensors: Results, options: dict[str, Any], layout: dict[str, Any]) -> Problem:
    caches = {name: tensors[name].clone() for name in CACHES if name in tensors}
    arguments: dict[str, Any] = tensors | caches | layout | options
    out, lse = reference.diff_flash_attn_with_kvcache(**arguments, return_lse=True)
    return Problem(tensors, options, {"out": out, "lse": lse, **caches}, layout=layout)
