"""A test of test_groups.py: break groups of maps slightly, and its checks must go red.

Each fault wraps the implementation from outside. No signal or noise may stand in for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import forward_verdict
from support.data import wide
from support.impls import Impl
from support.law import enforce
from test_groups import check_gradients, make_pairs
from torch import Tensor

R, CASE = 3, Case(sq=70, sk=70, heads=4, heads_k=2, causal=True, lam="token", norm="plain")
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
Change = Callable[[Tensor], Tensor]


def of_noise(change: Change) -> Change:
    """What a change makes of the noise maps alone, of q or its gradient."""
    return lambda q: torch.cat((q[..., :-1, :], change(q[..., -1:, :])), -2)


def of_signals(change: Change) -> Change:
    return lambda q: torch.cat((change(q[..., :-1, :]), q[..., -1:, :]), -2)


def per_group(change: Change) -> Change:
    return lambda x: change(x.unflatten(2, (-1, R))).flatten(2, 3)


FAULTS: dict[str, tuple[str, Change]] = {
    "noise of the next group": ("q", of_noise(lambda x: x.roll(1, 2))),
    "noise of the next group of the same keys": ("q", of_noise(
        lambda x: x.unflatten(2, (2, 2)).flip(3).flatten(2, 3))),
    "signals from last to first": ("q", of_signals(lambda x: x.flip(3))),
    "outputs from last to first": ("out", per_group(lambda x: x.flip(3))),
    "lambda of the first signal": ("lam", per_group(lambda x: x[..., :1].expand_as(x))),
    "lambda of the last signal x1.01": ("lam", per_group(
        lambda x: torch.cat((x[..., :-1], 1.01 * x[..., -1:]), -1))),
    "K of noise and signals exchanged": ("k", lambda x: x.flip(3)),
}  # fmt: skip


@EVERY_DTYPE
@pytest.mark.parametrize("fault", FAULTS)
def test_the_forward_goes_red(impl: Impl, fault: str, dtype: torch.dtype) -> None:
    q, p = make_pairs(R, CASE.but(dtype=dtype), impl.device)
    named = {"q": q, "k": p.k, "v": p.v, "lam": p.lam_rows(wide(dtype))}
    p = p.but(lam=named["lam"])
    name, change = FAULTS[fault]
    enforce(forward_verdict(impl.func(*named.values(), **p.options()), p))
    if name in named:
        named[name] = change(named[name])
    out = impl.func(*named.values(), **p.options())
    with pytest.raises(AssertionError, match="the law is broken"):
        enforce(forward_verdict(change(out) if name == "out" else out, p))


GRADIENT_FAULTS: dict[str, tuple[str, Change]] = {
    "dq of the noise from all signals but one": ("q", of_noise(lambda g: g * (R - 1) / R)),
    "dq of the noise x1.05": ("q", of_noise(lambda g: 1.05 * g)),
    "dq of two signals exchanged": ("q", of_signals(lambda g: g.flip(3))),
    "dk of the noise's K lost": ("k", lambda g: torch.cat((g[..., :1, :], 0 * g[..., 1:, :]), -2)),
    "dv without the last tile": ("v", lambda g: torch.cat((g[:, :64], 0 * g[:, 64:]), 1)),
}


@EVERY_DTYPE
@pytest.mark.parametrize("fault", GRADIENT_FAULTS)
def test_the_backward_goes_red(impl: Impl, fault: str, dtype: torch.dtype) -> None:
    q, p = make_pairs(R, CASE.but(dtype=dtype), impl.device)
    p = p.but(lam=p.lam_rows(wide(dtype)))
    leaves = [t.detach().clone().requires_grad_() for t in (q, p.k, p.v)]
    out = impl.func(*leaves, p.lam, **p.options())
    got: dict[str, Any] = dict(zip("qkv", torch.autograd.grad(out, leaves, p.dout), strict=True))
    check_gradients(got, q, p, R)
    name, change = GRADIENT_FAULTS[fault]
    with pytest.raises(AssertionError, match="the law is broken"):
        check_gradients({name: change(got[name])}, q, p, R)
