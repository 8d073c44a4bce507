"""FlashInfer as a peer on CUDA, where it is installed: forward and decoding only.

Its wrappers plan a batch on the host before they run it. A plan serves every call of one problem,
so that, as in a server, planning is not part of what is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from problem import DTYPES, Inputs, Problem
from recipes import four_calls
from torch import Tensor

MODULE = "flashinfer"
WORKSPACE = 2**28  # bytes
PAGE = 16  # tokens, of a cache that lies in one piece all the same


def installed(direction: str) -> list[str]:
    there = direction in ("fwd", "decode") and importlib.util.find_spec(MODULE)
    return list(PEERS) if there else []


def flashinfer4(x: Inputs) -> Tensor:
    """Four calls with V = d: its kernels want V as wide as Q."""
    call = _decode if x.problem.direction == "decode" else _prefill

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return call(x.problem, q, k, v)

    return four_calls(attend, x)


PEERS: dict[str, Callable[[Inputs], Tensor]] = {"flashinfer_4": flashinfer4}


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
    library = importlib.import_module(MODULE)
    plan = library.BatchPrefillWithRaggedKVCacheWrapper(_workspace(p.device), "NHD")
    starts_q, starts_k = (_starts(p, length) for length in (p.seqlen_q, p.seqlen_k))
    plan.plan(
        starts_q, starts_k, p.nheads, p.nheads_k, p.headdim,
        causal=p.causal, q_data_type=DTYPES[p.dtype],
    )  # fmt: skip
    return plan


@cache
def _decode_plan(p: Problem) -> Any:
    library = importlib.import_module(MODULE)
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
