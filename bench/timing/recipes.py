"""Differential attention out of ordinary attention calls, as its models write it.

`attend(q, k, v)` is one call of some library in flash-attn's layout, (batch, seqlen, heads, width);
it takes care of masks, GQA and caches. Groups of maps are written as Motif's models do: the noise's
result is computed once for a group, and repeated.

Each model has its own order of heads, so that no peer pays for ours. unilm's order is that of
`Inputs`: component c of head h is flat head 2h + c, and V is 2d wide. DiffLlama's (transformers) is
component-major: all heads of component 1, then all of component 2; V has 2·nheads_k heads of width
d, first the left halves, then the right ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .problem import Inputs

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def two_calls(attend: Attend, x: Inputs) -> Tensor:
    """unilm's `multihead_flashdiff_1`: V is 2d wide, for libraries that allow it."""
    return _difference(x, *(attend(*_component(x, c), x.v) for c in (0, 1)))


def four_calls(attend: Attend, x: Inputs) -> Tensor:
    """unilm's `multihead_flashdiff_2`: V in halves of width d, each map computed twice."""
    halves = x.v.chunk(2, dim=3)
    of_maps = (
        torch.cat([attend(*_component(x, c), half) for half in halves], dim=3) for c in (0, 1)
    )
    return _difference(x, *of_maps)


def two_calls_of_all_heads(attend: Attend, x: Inputs) -> Tensor:
    """DiffLlama's: both components in one call, one call for each half of V; its order of heads.

    As much arithmetic as four calls.
    """
    halves = (half.repeat(1, 1, 2, 1) for half in x.v.chunk(2, dim=2))
    o1, o2 = torch.cat([attend(x.q, x.k, half) for half in halves], dim=3).chunk(2, dim=2)
    return o1 - x.lam * o2


def _component(x: Inputs, c: int) -> tuple[Tensor, Tensor]:
    """Component c's query and key heads: (b, sq, h, d), (b, sk, hk, d), views but for signals."""
    r, k = x.problem.signal_per_noise, x.k[:, :, c::2]
    if r == 1:
        return x.q[:, :, c::2], k
    return (x.q[..., :r, :].flatten(2, 3), k) if c == 0 else (x.q[..., r, :], k)


def _difference(x: Inputs, o1: Tensor, o2: Tensor) -> Tensor:
    r = x.problem.signal_per_noise
    return o1 - x.lam * (o2 if r == 1 else o2.repeat_interleave(r, dim=2))


def component_major(x: Inputs) -> Inputs:
    """Leaves of their own in DiffLlama's order, with the values of x."""
    q, k = (_swap(t.detach().unflatten(2, (-1, 2))) for t in (x.q, x.k))
    v = _swap(x.v.detach().unflatten(3, (2, -1)))
    q, k, v = (t.requires_grad_(x.q.requires_grad) for t in (q, k, v))
    return replace(x, q=q, k=k, v=v)


def from_component_major(results: list[Tensor]) -> list[Tensor]:
    """Output, dq, dk, dv, dλ of such inputs as those of x would be."""
    if len(results) == 1:
        return results
    out, dq, dk, dv, dlam = results
    dq, dk = (_swap(t.unflatten(2, (2, -1))) for t in (dq, dk))
    dv = dv.unflatten(2, (2, -1)).transpose(2, 3).flatten(3)  # (b, s, hk, 2d)
    return [out, dq, dk, dv, dlam]


def _swap(t: Tensor) -> Tensor:
    """(b, s, m, n, d) to (b, s, n·m, d), contiguous."""
    return t.transpose(2, 3).flatten(2, 3).contiguous()
