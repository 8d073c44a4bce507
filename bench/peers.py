"""The ways to compute differential attention that are compared, all including the λ subtraction.

Every peer takes `Inputs` and returns the output (batch, seqlen_q, nheads, 2*d). Layout changes are
views, as a careful user of these functions would write them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from problem import Inputs, single
from torch import Tensor

Peer = Callable[[Inputs], Tensor]


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
    v = x.v.transpose(1, 2)  # (b, hk, sk, 2d)
    o1, o2 = (_sdpa(x, c, v) for c in (0, 1))
    return (o1 - x.lam * o2).transpose(1, 2)


def sdpa4(x: Inputs) -> Tensor:
    """Four scaled_dot_product_attention calls with V = d, on the flash path: each map twice."""
    d = x.problem.headdim
    halves = [x.v[..., :d].transpose(1, 2), x.v[..., d:].transpose(1, 2)]  # (b, hk, sk, d) each
    o1, o2 = (torch.cat([_sdpa(x, c, v) for v in halves], dim=-1) for c in (0, 1))
    return (o1 - x.lam * o2).transpose(1, 2)


def flex2(x: Inputs) -> Tensor:
    """Two torch.compile'd FlexAttention calls with V = 2d."""
    v = x.v.transpose(1, 2)  # (b, hk, sk, 2d)
    flex, mask = _compiled_flex(), _flex_mask(x)
    gqa = x.problem.nheads != x.problem.nheads_k
    o1, o2 = (
        flex(*_component(x, c), v, block_mask=mask, enable_gqa=gqa) for c in (0, 1)
    )  # (b, h, sq, 2d)
    return (o1 - x.lam * o2).transpose(1, 2)


PEERS: dict[str, Peer] = {"eager": eager, "sdpa2": sdpa2, "sdpa4": sdpa4, "flex2": flex2}


def peers_for(direction: str) -> dict[str, Peer]:
    """Ours first, then every peer with this direction (FlexAttention has no backward on a CPU)."""
    first: Peer = ours_decode if direction == "decode" else ours
    names = ["eager", "sdpa2", "sdpa4"] + (["flex2"] if direction == "fwd" else [])
    return {"ours": first} | {name: PEERS[name] for name in names}


def _component(x: Inputs, c: int) -> tuple[Tensor, Tensor]:
    """Component c's query and key: (b, h, sq, d), (b, hk, sk, d)."""
    return x.q[:, :, c::2].transpose(1, 2), x.k[:, :, c::2].transpose(1, 2)


def _sdpa(x: Inputs, c: int, v: Tensor) -> Tensor:
    q, k = _component(x, c)
    gqa = x.problem.nheads != x.problem.nheads_k
    return F.scaled_dot_product_attention(q, k, v, is_causal=x.problem.causal, enable_gqa=gqa)


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
