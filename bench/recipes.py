"""Differential attention out of ordinary attention calls, as its models write it.

`attend(q, k, v)` is one call in flash-attn's layout, (batch, seqlen, heads, width), of whichever
library; masks, GQA and caches are its business.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from problem import Inputs
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def two_calls(attend: Attend, x: Inputs) -> Tensor:
    """unilm's `multihead_flashdiff_1`: V is 2d wide, for libraries that allow it."""
    o1, o2 = (attend(*_component(x, c), x.v) for c in (0, 1))
    return o1 - x.lam * o2


def four_calls(attend: Attend, x: Inputs) -> Tensor:
    """unilm's `multihead_flashdiff_2`: V in halves of width d, each map computed twice."""
    halves = x.v.chunk(2, dim=3)
    o1, o2 = (
        torch.cat([attend(*_component(x, c), half) for half in halves], dim=3) for c in (0, 1)
    )
    return o1 - x.lam * o2


def two_calls_of_all_heads(attend: Attend, x: Inputs) -> Tensor:
    """DiffLlama's: both components in one call, one call for each half of V; its order of heads.

    As much arithmetic as four calls.
    """
    halves = (half.repeat(1, 1, 2, 1) for half in x.v.chunk(2, dim=2))
    o1, o2 = torch.cat([attend(x.q, x.k, half) for half in halves], dim=3).chunk(2, dim=2)
    return o1 - x.lam * o2


def _component(x: Inputs, c: int) -> tuple[Tensor, Tensor]:
    """Component c's query and key heads: (b, sq, h, d), (b, sk, hk, d), views."""
    return x.q[:, :, c::2], x.k[:, :, c::2]
