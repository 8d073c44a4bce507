"""Peers on CUDA from other libraries, where they are installed.

flash-attn, FlashAttention-3 and 4 and flex_head_fa share one interface. FlashInfer has forward and
decoding only. Its wrappers plan a batch on the host before they run it; one plan serves every call
of a problem, so that, as in a server, planning is not part of what is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .problem import DTYPES, Inputs, Problem
from .recipes import Attend, four_calls, two_calls, two_calls_of_all_heads

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
FLASHINFER = "flashinfer"
WORKSPACE = 2**28  # bytes
PAGE = 16  # tokens, of a cache that nevertheless lies in one piece


def installed(direction: str) -> list[str]:
    """The names whose module is there."""
    names = [name for name in NAMES if _is_there(MODULES[name.split("_")[0]])]
    if direction in ("fwd", "decode") and _is_there(FLASHINFER):
        names.append("flashinfer_4")
    return names


def _is_there(module: str) -> bool:
    """Whether a module exists; this imports no more than the package that contains it."""
    try:
        return bool(importlib.util.find_spec(module))
    except ImportError:  # the package around flash_attn.cute is missing, or does not load
        return False


def _flash(name: str, x: Inputs) -> Tensor:
    library, recipe = name.split("_")
    return RECIPES[recipe](_flash_call(importlib.import_module(MODULES[library]), x), x)


def _flash_call(library: Any, x: Inputs) -> Attend:
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


def _flashinfer(x: Inputs) -> Tensor:
    """Four calls with V = d: its kernels want V as wide as Q."""
    call = _decode if x.problem.direction == "decode" else _prefill

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return call(x.problem, q, k, v)

    return four_calls(attend, x)


def _prefill(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(batch, seqlen, heads, d) as a ragged batch whose sequences are equally long."""
    out = _prefill_plan(p).run(*(t.flatten(0, 1) for t in (q, k, v)))
    return out.unflatten(0, (p.batch, p.seqlen_q))


def _decode(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The cache as pages, one after another."""
    pages = tuple(t.unflatten(1, (-1, PAGE)).flatten(0, 1) for t in (k, v))
    return _decode_plan(p).run(q[:, 0], pages)[:, None]


@cache
def _prefill_plan(p: Problem) -> Any:
    library = importlib.import_module(FLASHINFER)
    plan = library.BatchPrefillWithRaggedKVCacheWrapper(_workspace(p.device), "NHD")
    starts_q, starts_k = (_starts(p, length) for length in (p.seqlen_q, p.seqlen_k))
    plan.plan(
        starts_q, starts_k, p.nheads, p.nheads_k, p.headdim,
        causal=p.causal, q_data_type=DTYPES[p.dtype],
    )  # fmt: skip
    return plan


@cache
def _decode_plan(p: Problem) -> Any:
    library = importlib.import_module(FLASHINFER)
    plan = library.BatchDecodeWithPagedKVCacheWrapper(_workspace(p.device), "NHD")
    pages = p.seqlen_k // PAGE
    last = torch.full((p.batch,), PAGE, dtype=torch.int32, device=p.device)
    indices = torch.arange(p.batch * pages, dtype=torch.int32, device=p.device)
    dtype = DTYPES[p.dtype]
    plan.plan(
        _starts(p, pages), indices, last, p.nheads, p.nheads_k, p.headdim, PAGE,
        q_data_type=dtype, kv_data_type=dtype,
    )  # fmt: skip
    return plan


@cache
def _workspace(device: str) -> Tensor:
    return torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)


def _starts(p: Problem, length: int) -> Tensor:
    return length * torch.arange(p.batch + 1, dtype=torch.int32, device=p.device)


PEERS: dict[str, Callable[[Inputs], Tensor]] = {
    **{name: partial(_flash, name) for name in NAMES},
    "flashinfer_4": _flashinfer,
}
