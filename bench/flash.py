"""Peers on CUDA: flash-attn, FlashAttention-3 and 4, flex_head_fa, where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from problem import Inputs
from recipes import Attend, four_calls, two_calls, two_calls_of_all_heads
from torch import Tensor

MODULES = {
    "fa2": "flash_attn",
    "fa3": "flash_attn_interface",
    "fa4": "flash_attn.cute",
    "flexhead": "flex_head_fa",
}
RECIPES = {"2": two_calls, "4": four_calls, "hf": two_calls_of_all_heads}
NAMES = (
    "fa2_4", "fa2_hf", "fa3_2", "fa3_4", "fa3_hf", "fa4_2", "fa4_4", "fa4_hf", "flexhead_2",
    "flexhead_4",
)  # fmt: skip


def installed() -> list[str]:
    """The names whose module is there."""
    return [name for name in NAMES if _is_there(MODULES[name.split("_")[0]])]


def _is_there(module: str) -> bool:
    """Without importing more of it than the package that a module is in."""
    try:
        return bool(importlib.util.find_spec(module))
    except ImportError:  # the package around flash_attn.cute is missing, or does not load
        return False


def _run(name: str, x: Inputs) -> Tensor:
    library, recipe = name.split("_")
    return RECIPES[recipe](_attend(importlib.import_module(MODULES[library]), x), x)


def _attend(library: Any, x: Inputs) -> Attend:
    """One call of it; some versions also give the log-sum-exp, unasked.

    FlashAttention-4 has no function for a cache, but the caches here are full: they are K and V.
    """
    p = x.problem
    call = partial(library.flash_attn_func, causal=p.causal)
    if p.direction == "decode" and hasattr(library, "flash_attn_with_kvcache"):
        call = partial(library.flash_attn_with_kvcache, causal=p.causal, cache_seqlens=p.seqlen_k)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = call(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return attend


PEERS: dict[str, Callable[[Inputs], Tensor]] = {name: partial(_run, name) for name in NAMES}
