"""Flop formulas of the ops, for torch.utils.flop_counter.

They go by shapes alone, as torch's own do: a mask takes nothing off, a packed call counts for each
query as many keys as max_seqlen_k says, and a cache counts all its slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch  # noqa: F401  the example below uses it

from .ops import OPS, kernels


def register() -> None:
    """Lets torch.utils.flop_counter.FlopCounterMode count the ops; a second call changes nothing.

    Per pair of a query and a key, and per head of two maps: 2·(2d + 2dv) flop forward, which is 12d
    in V1 (dv = 2d) and 8d in V2 (dv = d), and 12d + 4dv backward, 20d and 16d.

    Examples:
        >>> from torch.utils.flop_counter import FlopCounterMode
        >>> from diffattn_cuda import diff_flash_attn_func
        >>> register()
        >>> q, k = torch.randn(2, 1, 100, 8, 64)  # 4 heads, d = 64
        >>> with FlopCounterMode(display=False) as counter:
        ...     out = diff_flash_attn_func(q, k, torch.randn(1, 100, 4, 128), 0.8)
        >>> counter.get_total_flops() == 4 * 100 * 100 * 12 * 64
        True
    """
    # Imported here, because it imports triton where there is one.
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for op in OPS:
        packet = getattr(kernels, op)
        if packet not in flop_registry:
            register_flop_formula(packet)(_formula(op))


def _formula(op: str) -> Callable[..., int]:
    """From the op's arguments with shapes in the tensors' places, as torch hands them over."""
    names = [argument.name for argument in getattr(kernels, op).default._schema.arguments]

    def flops(*args: Any, **named: Any) -> int:
        given = dict(zip(names, args, strict=False)) | named
        q, of_cache = given["q"], "_cache" * ("k_cache" in names)
        k, v = given["k" + of_cache], given["v" + of_cache]
        dv = v[-1] * (2 if len(v) == len(k) else 1)  # whole rows, or halves
        maps, d = q[-2:]
        products = maps * (2 * d + 2 * dv)  # S and P·V of each map
        if op.startswith("bwd"):
            products = maps * 3 * 2 * d + 2 * 2 * dv  # S, dQ, dK of each; dP and dV of both at once
        return math.prod(q[:-2]) * _keys(given) * products

    return flops


def _keys(given: dict[str, Any]) -> int:
    """How many each query counts."""
    if "k_cache" in given:
        table = given.get("block_table")
        return given["k_cache"][1] * (1 if table is None else table[1])
    return given["k"][1] if given.get("cu_seqlens_k") is None else given["max_seqlen_k"]
