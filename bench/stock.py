"""Two calls of a stock attention kernel, emulated: what it rounds, and nothing else.

A flash kernel as FlashAttention-2 has it: products of 16-bit operands summed in fp32, P and dS
rounded where a tensor core reads them, results rounded once. Around the calls ordinary torch
operations round O1, O2, lambda·O2, the difference, and the two parts of dV and their sum.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timing.problem import Inputs
from timing.recipes import two_calls
from torch import Tensor


class StockAttention(torch.autograd.Function):
    """softmax(q·kᵀ/√d)·v; all (batch, heads, seqlen, width), masked bottom-right if causal."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        scores = _scores(q, k, causal)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        out = _rounded(weights, v) @ v.float() / weights.sum(-1, keepdim=True)
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, out, scores.logsumexp(-1, keepdim=True))
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dout = grads[0].float()
        p = torch.exp(_scores(q, k, ctx.causal) - lse)
        ds = p * (dout @ v.float().mT - (dout * out.float()).sum(-1, keepdim=True))
        ds, scale = _rounded(ds, q), q.shape[-1] ** -0.5
        dq, dk, dv = ds @ k.float() * scale, ds.mT @ q.float() * scale, _rounded(p, v).mT @ dout
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def stock2(x: Inputs) -> Tensor:
    """One call a component, with V = 2d."""
    assert x.problem.nheads == x.problem.nheads_k, "the emulation expands no heads"
    return two_calls(partial(_attend, x.problem.causal), x)


def _attend(causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In flash-attn's layout, (batch, seqlen, heads, width)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return StockAttention.apply(q, k, v, causal).transpose(1, 2)


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    scores = q.float() @ k.float().mT * q.shape[-1] ** -0.5
    if causal:
        sq, sk = scores.shape[-2:]
        hidden = torch.ones(sq, sk, dtype=torch.bool).triu(1 + sk - sq)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def _rounded(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).float()
