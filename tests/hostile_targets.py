"""Everything that takes tensors, by name: how a legal call is drawn, and what is called.

A call is drawn from a seed and its index alone, so any one of them can be made again by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import hostile_parts
from hostile_calls import (
    Arguments,
    Call,
    dense,
    kvcache,
    module,
    packed,
    raw_bwd,
    raw_decode,
    raw_fwd,
)

import diffattn_cuda
from diffattn_cuda import nn, reference


def legal_call(seed: int, index: int) -> Call:
    rng = random.Random(f"{seed}:{index}")
    call = Call(rng.choice(TARGETS), {}, rng)
    call.args = LEGAL[call.target](call)
    return call


LEGAL: dict[str, Callable[[Call], Arguments]] = {
    "dense": dense,
    "packed": packed,
    "kvcache": kvcache,
    "v1": module,
    "v2": module,
    "raw fwd": raw_fwd,
    "raw bwd": raw_bwd,
    "raw decode": raw_decode,
    **hostile_parts.LEGAL,
}
TARGETS = [*LEGAL, "kvcache", "raw decode"]  # decoding has most arguments
PUBLIC: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {  # ours, the reference
    "dense": (diffattn_cuda.diff_flash_attn_func, reference.diff_flash_attn_func),
    "packed": (diffattn_cuda.diff_flash_attn_varlen_func, reference.diff_flash_attn_varlen_func),
    "kvcache": (
        diffattn_cuda.diff_flash_attn_with_kvcache,
        reference.diff_flash_attn_with_kvcache,
    ),
    **hostile_parts.PUBLIC,
}
MODULES: dict[str, Any] = {"v1": nn.MultiheadDiffAttn, "v2": nn.MultiheadDiffAttnV2}
