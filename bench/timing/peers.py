"""The ways to compute differential attention that are compared, all including the λ subtraction.

Every peer takes `Inputs` and returns the output (batch, seqlen_q, nheads, 2*d). Layout changes are
views, as a careful user of these functions would write them. Peers whose name ends in _hf take
their inputs in DiffLlama's order of heads (recipes.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import libraries
from .problem import Inputs, Problem, single
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

    return single(diff_flash_attn_func(x.q, x.k, x.v, x.lam, **x.problem.mask))


def ours_decode(x: Inputs) -> Tensor:
    """The library's decoding step over a full cache."""
    from diffattn_cuda import diff_flash_attn_with_kvcache

    mask, filled = x.problem.mask, x.problem.seqlen_k
    return single(diff_flash_attn_with_kvcache(x.q, x.k, x.v, x.lam, cache_seqlens=filled, **mask))


def ours_by_kind(attend: Peer, x: Inputs) -> Tensor:
    """Two of our own calls, one for the full heads and one for those that stream, and a cat."""
    p = x.problem
    group = p.nheads // p.nheads_k
    outs = []
    for heads, share in ((slice(0, p.full_heads), 0.0), (slice(p.full_heads, p.nheads_k), 1.0)):
        n = len(range(p.nheads_k)[heads])
        if not n:
            continue
        own = replace(p, nheads=n * group, nheads_k=n, streaming_share=share)
        q = x.q[:, :, 2 * group * heads.start : 2 * group * heads.stop]
        k = x.k[:, :, 2 * heads.start : 2 * heads.stop]
        outs.append(attend(replace(x, problem=own, q=q, k=k, v=x.v[:, :, heads])))
    return torch.cat(outs, 2)


def ours_in_pairs(x: Inputs) -> Tensor:
    """Our own call with a pair for each signal of a group, in which the noise's queries repeat."""
    from diffattn_cuda.groups import as_pairs

    return ours(replace(x, q=as_pairs(x.q)))


def eager(x: Inputs) -> Tensor:
    """Naive eager PyTorch: the formula, with two S×S maps in memory."""
    from diffattn_cuda import reference

    return single(reference.diff_flash_attn_func(x.q, x.k, x.v, x.lam, **x.problem.mask))


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
    "full": ours,
    "ours2": partial(ours_by_kind, ours),
    "pairs": ours_in_pairs,
    "eager": eager,
    "sdpa2": sdpa2,
    "sdpa4": sdpa4,
    "sdpa_hf": sdpa_hf,
    "flex2": flex2,
    **ONE_BACKEND,
    **libraries.PEERS,
}


def peers_for(
    direction: str, device: str = "cpu", streaming: bool = False, grouped: bool = False
) -> dict[str, Peer]:
    """Ours first, then every peer that this machine has for it.

    FlexAttention has no backward on a CPU, and the flash-attn family no CPU at all; SDPA has one
    fused backend there, which it takes by itself. Only FlexAttention can give heads masks of their
    own; "full" is ours without heads that stream. DiffLlama has no groups of maps.
    """
    first: Peer = ours_decode if direction == "decode" else ours
    names = ["eager"] if streaming else ["eager", "sdpa2", "sdpa4", "sdpa_hf"]
    if direction == "fwd" or (direction == "fwdbwd" and device == "cuda"):
        names.append("flex2")
    if streaming:
        kinds: dict[str, Peer] = {"full": first, "ours2": partial(ours_by_kind, first)}
        return {"ours": first, **kinds} | {name: PEERS[name] for name in names}
    if device == "cuda":
        names += [*ONE_BACKEND, *libraries.installed(direction)]
    if grouped:
        names = [name for name in names if not name.endswith("_hf")]
        names += [] if direction == "decode" else ["pairs"]
    return {"ours": first} | {name: PEERS[name] for name in names}


def inputs_for(name: str, x: Inputs) -> Inputs:
    """x in the order of heads that the peer's model has, and with the mask that the peer has."""
    if name == "full":
        return replace(x, problem=replace(x.problem, streaming_share=0.0))
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
def _block_mask(p: Problem) -> object:
    from torch.nn.attention.flex_attention import create_block_mask

    first_stream = p.full_heads * (p.nheads // p.nheads_k)

    def bottom_right(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i + (p.seqlen_k - p.seqlen_q) >= j

    def streaming(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        near = i + (p.seqlen_k - p.seqlen_q) - j <= p.left
        return bottom_right(b, h, i, j) & ((h < first_stream) | near | (j < p.sink))

    law, heads = (streaming, p.nheads) if p.streaming else (bottom_right, None)
    return create_block_mask(law, None, heads, p.seqlen_q, p.seqlen_k, device=p.device)


def _flex_mask(x: Inputs) -> object:
    return _block_mask(x.problem) if x.problem.causal else None
