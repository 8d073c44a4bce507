"""Correctness before speed: every peer is compared with the fp64 formula before it is timed."""

from __future__ import annotations

import torch
from problem import Inputs, single
from torch import Tensor

# Relative Frobenius error that a right answer stays below, whatever the rounding points of the peer
# (naive bf16 rounds the logits as well). A wrong mask, head map or λ is off by 0.1 or more.
TOLERANCE = {"fp64": 1e-10, "fp32": 2e-5, "fp16": 1e-2, "bf16": 5e-2}
NAMES = ("out", "dq", "dk", "dv")


def oracle(x: Inputs) -> list[Tensor]:
    """out, and with a backward dq, dk, dv, in fp64: a KV head at a time, to keep S×S small."""
    p = x.problem
    rep = p.nheads // p.nheads_k
    sequences: list[list[Tensor]] = []
    for b in range(p.batch):
        heads = [_one_head(x, slice(b, b + 1), h, rep) for h in range(p.nheads_k)]
        sequences.append([torch.cat(parts, dim=2) for parts in zip(*heads, strict=True)])
    return [torch.cat(parts) for parts in zip(*sequences, strict=True)]


def _one_head(x: Inputs, b: slice, h: int, rep: int) -> list[Tensor]:
    """Of one sequence and KV head, with its query heads."""
    from diffattn_cuda import reference

    q = x.q.detach()[b, :, 2 * rep * h : 2 * rep * (h + 1)].double()  # (1, sq, 2*rep, d)
    k = x.k.detach()[b, :, 2 * h : 2 * h + 2].double()  # (1, sk, 2, d)
    v = x.v.detach()[b, :, h : h + 1].double()  # (1, sk, 1, 2d)
    leaves = [t.requires_grad_(x.dout is not None) for t in (q, k, v)]
    lam = x.lam.detach().double()
    out = single(reference.diff_flash_attn_func(q, k, v, lam, causal=x.problem.causal))
    if x.dout is None:
        return [out.detach()]
    dout = x.dout[b, :, rep * h : rep * (h + 1)].double()
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def mistake(got: list[Tensor], want: list[Tensor], dtype: str) -> str | None:
    """The first tensor that is further from the oracle than its dtype explains, in words."""
    for name, a, b in zip(NAMES, got, want, strict=False):
        error = ((a.detach().double() - b).norm() / b.norm()).item()
        if not error <= TOLERANCE[dtype]:
            return (
                f"{name} is off by {error:.1e} (relative), at most {TOLERANCE[dtype]:.0e} allowed"
            )
    return None
