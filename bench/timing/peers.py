"""The ways to compute differential attention that are compared, all including the λ subtraction.

Every peer takes `Inputs` and returns the output (batch, seqlen_q, nheads, 2*d). Layout changes are
views, as a careful user of these functions would write them. Peers whose name ends in _hf take
their inputs in DiffLlama's order of heads (recipes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import libraries
from .problem import Inputs, single
from .recipes import (
    Attend,
    component_major,
    four_calls,
    from_component_major,
    two_calls,
    two_calls_of_all_heads,
)

Peer = Callable[[Inputs], Tensor]
Recipe = Callable[[Attend, Inputs], Tensor]


def ours(x: Inputs) -> Tensor:
    """The library's fused forward (with its fused backward behind it)."""
    from diffattn_cuda import diff_flash_attn_func

    return single(diff_flash_attn_func(x.q, x.k, x.v, x.lam, causal=x.problem.causal))


def ours_decode(x: Inputs) -> Tensor:
    """The library's decoding step over a full cache."""
    from diffattn_cuda import diff_flash_attn_with_kvcache

    filled = x.problem.seqlen_k
    causal = x.problem.causal
    return single(
        diff_flash_attn_with_kvcache(x.q, x.k, x.v, x.lam, cache_seqlens=filled, causal=causal)
    )


def eager(x: Inputs) -> Tensor:
    """Naive eager PyTorch: the formula, with two S×S maps in memory."""
    from diffattn_cuda import reference

    return single(reference.diff_flash_attn_func(x.q, x.k, x.v, x.lam, causal=x.problem.causal))


def sdpa2(x: Inputs) -> Tensor:
    """Two scaled_dot_product_attention calls with V = 2d (which takes SDPA off its flash path)."""
    return two_calls(partial(_sdpa, x), x)


def sdpa4(x: Inputs) -> Tensor:
    """Four scaled_dot_product_attention calls with V = d, on the flash path: each map twice."""
    return four_calls(partial(_sdpa, x), x)


def sdpa_hf(x: Inputs) -> Tensor:
    """DiffLlama's two calls: all heads of both components, V = d."""
    return two_calls_of_all_heads(partial(_sdpa, x), x)


def flex2(x: Inputs) -> Tensor:
    """Two torch.compile'd FlexAttention calls with V = 2d."""
    return two_calls(partial(_flex, x), x)


def sdpa_of(backend: str, recipe: Recipe) -> Peer:
    """A composition whose every call is held to one backend; it raises where that cannot."""

    def peer(x: Inputs) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return recipe(partial(_sdpa, x), x)

    return peer


BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ONE_BACKEND: dict[str, Peer] = {
    f"sdpa{calls}_{backend}": sdpa_of(backend, recipe)
    for calls, recipe in ((2, two_calls), (4, four_calls))
    for backend in BACKENDS
}
PEERS: dict[str, Peer] = {
    "eager": eager,
    "sdpa2": sdpa2,
    "sdpa4": sdpa4,
    "sdpa_hf": sdpa_hf,
    "flex2": flex2,
    **ONE_BACKEND,
    **libraries.PEERS,
}


def peers_for(direction: str, device: str = "cpu") -> dict[str, Peer]:
    """Ours first, then every peer that this machine has for it.

    FlexAttention has no backward on a CPU, and the flash-attn family no CPU at all; SDPA has one
    fused backend there, which it takes by itself.
    """
    first: Peer = ours_decode if direction == "decode" else ours
    names = ["eager", "sdpa2", "sdpa4", "sdpa_hf"]
    if direction == "fwd" or (direction == "fwdbwd" and device == "cuda"):
        names.append("flex2")
    if device == "cuda":
        names += [*ONE_BACKEND, *libraries.installed(direction)]
    return {"ours": first} | {name: PEERS[name] for name in names}


def inputs_for(name: str, x: Inputs) -> Inputs:
    """x in the order of heads that the peer's model has."""
    return component_major(x) if name.endswith("_hf") else x


def in_our_order(name: str, results: list[Tensor]) -> list[Tensor]:
    """What a peer gave for such inputs, as it would be for ours."""
    return from_component_major(results) if name.endswith("_hf") else results


def _sdpa(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In flash-attn's layout, (batch, seqlen, heads, width)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    causal, gqa = x.problem.causal, q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
    return out.transpose(1, 2)


def _flex(x: Inputs, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    return _compiled_flex()(q, k, v, block_mask=_flex_mask(x), enable_gqa=gqa).transpose(1, 2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@cache
def _block_mask(sq: int, sk: int, device: str) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    def bottom_right(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i + (sk - sq) >= j

    return create_block_mask(bottom_right, None, None, sq, sk, device=device)


def _flex_mask(x: Inputs) -> object:
    p = x.problem
    return _block_mask(p.seqlen_q, p.seqlen_k, p.device) if p.causal else None
