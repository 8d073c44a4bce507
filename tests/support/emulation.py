"""The fused computation, emulated in eager PyTorch with the roundings a good kernel makes.

16-bit dtypes: products accumulated in fp32; P, A = P1 - lambda P2, dS and u rounded once to the
dtype where a tensor core would read them (the normaliser sums the rounded P); O1 - lambda O2 in
fp32; one rounding of each result. Saved for backward: O and O2 + lambda O1 in the dtype, the LSEs
in fp32.

fp32 and fp64: everything in that dtype, each product summed term after term in a random order.
Rounding there comes from the order of summation alone, and one term after another is the order
with the largest error, so it bounds what blocked and vectorised loops do without being generous.

The error of one emulated run is itself a random draw, so `variant` selects one of several equally
good runs: another order of summation, and another reference for P (a running maximum that is
stale by a fraction of a unit rounds every P differently; s * log2(e) folded into fp32 queries for
exp2 rounds every logit differently). The law takes the largest error over variants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Problem, wide

LOG2_E = math.log2(math.e)
STALE = (0.0, 0.35, 0.6, 0.15)  # how far below the running maximum lies, in nats, by variant


@dataclass
class Forward:
    """Results and what the backward saves. Heads come first: (batch, nheads, seqlen, ...)."""

    o: Tensor  # (2, b, h, sq, dv) O1 and O2, not rounded
    y: Tensor  # (b, h, sq, dv) the output, rounded
    out: Tensor  # (b, h, sq, dv) before the norm, rounded
    turned: Tensor  # (b, h, sq, dv) O2 + lambda O1, rounded: with `out`, O1 and O2 rotated
    lse: Tensor  # (2, b, h, sq)
    rstd: Tensor  # (b, h, sq, 1)
    terms: Tensor  # (b, h, sq) norms of O1 and lambda O2, summed: what the subtraction cancels


class Emulation:
    """One variant of the fused computation of one problem."""

    def __init__(self, problem: Problem, variant: int = 0) -> None:
        self.problem = problem
        self.dtype = problem.q.dtype
        self.acc = wide(self.dtype)
        self.variant = variant
        self.order = torch.Generator().manual_seed(1000 + variant)
        group = problem.q.shape[2] // problem.k.shape[2]
        q, k, v = (x.detach().to(self.acc).cpu() for x in (problem.q, problem.k, problem.v))
        k = k.expand(*k.shape[:3], 2, k.shape[-1])
        self.q = q.permute(3, 0, 2, 1, 4)  # (2, b, h, sq, d)
        self.k = k.repeat_interleave(group, 2).permute(3, 0, 2, 1, 4)  # (2, b, h, sk, d)
        self.v = v.repeat_interleave(group, 2).transpose(1, 2)  # (b, h, sk, dv)
        self.lam = problem.lam_rows(self.acc).detach().cpu().transpose(1, 2)[..., None]
        self.scores = self._scores()  # (2, b, h, sq, sk)

    def rounded(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(self.acc)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, accumulated in fp32 or fp64; term after term if the dtype is that wide."""
        if self.dtype != self.acc:
            return a @ b
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        total = a.new_zeros(*batch, a.shape[-2], b.shape[-1])
        for i in torch.randperm(a.shape[-1], generator=self.order).tolist():
            total.addcmul_(a[..., :, i, None], b[..., None, i, :])
        return total

    def total(self, x: Tensor, dim: int) -> Tensor:
        """The sum over `dim` (kept), term after term in a random order if the dtype is wide."""
        x = x.movedim(dim, -1)
        ones = x.new_ones(x.shape[-1], 1)
        return self.matmul(x[..., None, :], ones)[..., 0].movedim(-1, dim)

    def _scores(self) -> Tensor:
        sq, sk = self.q.shape[-2], self.k.shape[-2]
        scale, keys = self.problem.softmax_scale(), self.k.transpose(-1, -2)
        if self.dtype == self.acc and self.variant % 2:
            scores = self.matmul(self.q * (scale * LOG2_E), keys) * (1 / LOG2_E)
        else:
            scores = self.matmul(self.q, keys) * scale
        if cap := self.problem.softcap:
            scores = cap * (scores / cap).tanh()
        return scores.masked_fill(~visible(sq, sk, self.problem), -torch.inf)

    def forward(self) -> Forward:
        p = self.problem
        top = self.scores.amax(-1, keepdim=True) if self.scores.shape[-1] else self.scores.sum(
            -1, keepdim=True) - torch.inf  # fmt: skip
        top = top.masked_fill(top == -torch.inf, 0.0) - STALE[self.variant]
        weights = torch.exp(self.scores - top)
        if self.dtype == torch.float16:  # a stale maximum must not overflow what fp16 holds
            weights = weights.clamp(max=65504.0)
        rounded = self.rounded(weights)
        norm = self.total(rounded, -1)
        lse = (top + torch.log(self.total(weights, -1)))[..., 0]
        if self.variant == 3:  # a logarithm that is off by an ulp, either way, is as good
            away = torch.tensor([torch.inf, -torch.inf], dtype=lse.dtype).view(2, 1, 1, 1)
            lse = torch.where(lse.isfinite(), torch.nextafter(lse, away), lse)
        o = self.matmul(rounded, self.v) / norm.masked_fill(norm == 0, 1.0)
        out = o[0] - self.lam * o[1]
        rstd, y = torch.ones_like(out[..., :1]), out
        if p.norm_eps is not None:
            rstd = torch.rsqrt(self.total(out.square(), -1) / out.shape[-1] + p.norm_eps)
            y = out * rstd
        if p.norm_weight is not None:
            y = y * p.norm_weight.to(self.acc).cpu()
        y = self.rounded(y * p.out_scale)
        terms = o[0].norm(dim=-1) + (self.lam * o[1]).norm(dim=-1)
        turned = self.rounded(o[1] + self.lam * o[0])
        return Forward(o, y, self.rounded(out), turned, lse, rstd, terms)

    def backward(self) -> dict[str, Tensor]:
        """Gradients in canonical shapes: q, k, v; lam by (batch, seqlen_q, nheads); norm_weight."""
        p, saved = self.problem, self.forward()
        g = p.dout.to(self.acc).cpu().transpose(1, 2) * p.out_scale  # (b, h, sq, dv)
        grads = {}
        if p.norm_eps is not None:
            x_hat = saved.out * saved.rstd
            grads["norm_weight"] = self.total((g * x_hat).flatten(0, 2), 0)[0]
            if p.norm_weight is not None:
                g = g * p.norm_weight.to(self.acc).cpu()
            mean = self.total(g * x_hat, -1) / g.shape[-1]
            g = g - mean * x_hat
        u = self.rounded(g)  # dO = rstd * u
        out2 = (saved.turned - self.lam * saved.out) / (1 + self.lam.square())
        d2 = self.total(u * out2, -1) * saved.rstd
        d1 = self.total(u * saved.out, -1) * saved.rstd + self.lam * d2
        dp = self.matmul(u, self.v.transpose(-1, -2)) * saved.rstd  # (b, h, sq, sk)
        lse = saved.lse.masked_fill(saved.lse == -torch.inf, 0.0)
        maps = torch.exp(self.scores - lse[..., None])  # (2, b, h, sq, sk)
        spread = float(torch.exp(torch.tensor(STALE[self.variant])))  # moves the rounding points
        a = self.rounded((maps[0] - self.lam * maps[1]) * saved.rstd * spread) / spread
        dlse = torch.zeros_like(saved.lse) if p.dlse is None else p.dlse.to(self.acc).cpu()
        ds1 = maps[0] * (dp - d1 + dlse[0, ..., None])
        ds2 = maps[1] * (dlse[1, ..., None] - self.lam * (dp - d2))
        grads |= self._of_scores(torch.stack([ds1, ds2]), spread)
        grads["v"] = self._keys(self.matmul(a.transpose(-1, -2), u)[None])[..., 0, :]
        grads = {name: self.rounded(x) for name, x in grads.items()}
        grads["lam"] = -d2[..., 0].transpose(1, 2)
        return grads

    def backward_of_maps(self, do: Tensor, dlse: Tensor) -> dict[str, Tensor]:
        """Gradients of q, k, v from each map's own: do (2, b, h, sq, dv), dlse (2, b, h, sq)."""
        saved, u = self.forward(), self.rounded(do.to(self.acc).cpu())
        d = self.total(u * saved.o, -1)
        dp = self.matmul(u, self.v.transpose(-1, -2))
        lse = saved.lse.masked_fill(saved.lse == -torch.inf, 0.0)
        maps = torch.exp(self.scores - lse[..., None])  # (2, b, h, sq, sk)
        spread = float(torch.exp(torch.tensor(STALE[self.variant])))  # moves the rounding points
        grads = self._of_scores(maps * (dp - d + dlse.to(self.acc).cpu()[..., None]), spread)
        a = self.rounded(maps * spread) / spread
        dv = self._keys(self.matmul(a.transpose(-1, -2), u))  # (b, sk, nheads_k, 2, dv)
        return {name: self.rounded(x) for name, x in (grads | {"v": dv.sum(3)}).items()}

    def _of_scores(self, ds: Tensor, spread: float) -> dict[str, Tensor]:
        """Gradients of q and k from those of the scaled scores, (2, b, h, sq, sk)."""
        if cap := self.problem.softcap:  # 1 - tanh², of keys that are seen
            ds = ds * (1 - (self.scores / cap).nan_to_num(neginf=0.0).square())
        ds = self.rounded(ds * spread) / spread
        scale = self.problem.softmax_scale()
        dq = (self.matmul(ds, self.k) * scale).permute(1, 3, 2, 0, 4)
        dk = self._keys(self.matmul(ds.transpose(-1, -2), self.q) * scale)
        return {"q": dq, "k": dk.sum(3, keepdim=True) if self.problem.k.shape[3] == 1 else dk}

    def _keys(self, x: Tensor) -> Tensor:
        """(c, b, h, sk, width) to (b, sk, nheads_k, c, width), summed over each group."""
        heads_k = self.problem.k.shape[2]
        x = x.unflatten(2, (heads_k, -1)).sum(3)
        return x.permute(1, 3, 2, 0, 4)


def visible(sq: int, sk: int, problem: Problem) -> Tensor:
    """(sq, sk) mask by the sentence of the design, without the reference's help; with heads of
    two kinds (nheads, sq, sk)."""
    i = torch.arange(sq)[:, None] + sk - sq
    j = torch.arange(sk)[None, :]
    left, right = problem.window
    mask = torch.ones(sq, sk, dtype=torch.bool)
    if right >= 0:
        mask &= j <= i + right
    if problem.causal:
        mask &= j <= i
    seen = mask & ((j >= i - left) | (j < problem.sink)) if left >= 0 else mask
    if problem.streaming is None:
        return seen
    group = problem.q.shape[2] // problem.k.shape[2]
    kinds = [seen if streams else mask for streams in problem.streaming]
    return torch.stack([kind for kind in kinds for _ in range(group)])
