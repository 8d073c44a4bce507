"""The same problem in another model's order of heads, so that no peer pays for ours.

unilm's order is that of `Inputs`: component c of head h is flat head 2h + c, and V is 2d wide.
DiffLlama's (transformers) is component-major: all heads of component 1, then all of component 2;
and V has 2·nheads_k heads of width d, the left halves first, then the right ones.
"""

from __future__ import annotations

from dataclasses import replace

from problem import Inputs
from torch import Tensor


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
