"""The soft cap on scores, c·tanh(S / c): its argument, and the formula."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import arguments

LEAST, MOST = 1e-9, 1e9  # as in csrc/diffattn.h
_ACCEPTED = f"0 (no cap), or a number from {LEAST:g} to {MOST:g}"


def softcap_of(softcap: Any) -> float:
    """The number, as the ops take it."""
    if isinstance(softcap, Tensor):
        raise TypeError(f"softcap is {arguments.shown(softcap)}, accepted: {_ACCEPTED}")
    cap = arguments.static_number("softcap", softcap, _ACCEPTED)
    if not (cap == 0 or LEAST <= cap <= MOST):
        raise ValueError(f"softcap is {cap}, accepted: {_ACCEPTED}")
    return cap


def capped(scores: Tensor, softcap: float) -> Tensor:
    """Scores before the mask; 0 caps nothing."""
    return softcap * (scores / softcap).tanh() if softcap else scores
