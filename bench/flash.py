"""Peers on CUDA: flash-attn, FlashAttention-3 and flex_head_fa, where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from problem import Inputs
from recipes import Attend, four_calls, two_calls, two_calls_of_all_heads
from torch import Tensor

MODULES = {"fa2": "flash_attn", "fa3": "flash_attn_interface", "flexhead": "flex_head_fa"}
RECIPES = {"2": two_calls, "4": four_calls, "hf": two_calls_of_all_heads}
NAMES = ("fa2_4", "fa2_hf", "fa3_2", "fa3_4", "fa3_hf", "flexhead_2", "flexhead_4")


def installed() -> list[str]:
    """The names whose module is there."""
    return [name for name in NAMES if importlib.util.find_spec(MODULES[name.split("_")[0]])]


def _run(name: str, x: Inputs) -> Tensor:
    library, recipe = name.split("_")
    return RECIPES[recipe](_attend(importlib.import_module(MODULES[library]), x), x)


def _attend(library: Any, x: Inputs) -> Attend:
    """One call of it; some versions also give the log-sum-exp, unasked."""
    p = x.problem
    call = partial(library.flash_attn_func, causal=p.causal)
    if p.direction == "decode":
        call = partial(library.flash_attn_with_kvcache, causal=p.causal, cache_seqlens=p.seqlen_k)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = call(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return attend


PEERS: dict[str, Callable[[Inputs], Tensor]] = {name: partial(_run, name) for name in NAMES}
