"""What is measured: one attention problem, its inputs, its work, and the right answer.

Every way is compared with the right answer before it is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
# Relative Frobenius error that a right answer stays below, whatever the rounding points of the peer
# (naive bf16 rounds the logits as well). A wrong mask, head map or λ is off by 0.1 or more.
TOLERANCE = {"fp64": 1e-10, "fp32": 2e-5, "fp16": 1e-2, "bf16": 5e-2}
NAMES = ("out", "dq", "dk", "dv")
LAMBDA = 0.8  # lambda_init exceeds 0.7 from layer 6 on: the ordinary value in a trained model


@dataclass(frozen=True)
class Problem:
    """One shape. V is 2d wide (DIFF V1), the shape that stock kernels have trouble with."""

    direction: str  # fwd, bwd, fwdbwd or decode
    dtype: str
    batch: int
    nheads: int
    nheads_k: int
    seqlen_q: int
    seqlen_k: int
    headdim: int
    causal: bool
    device: str = "cpu"
    sink: int = 0  # of the heads that stream, with `left`
    left: int = -1
    streaming_share: float = 0.0  # of the KV heads, rounded; the last ones stream
    signal_per_noise: int = 1  # r: nheads counts signals, r of which share a noise map

    @property
    def full_heads(self) -> int:
        """KV heads that see every key."""
        return self.nheads_k - round(self.streaming_share * self.nheads_k)

    @property
    def streaming(self) -> bool:
        return self.full_heads < self.nheads_k

    @property
    def mask(self) -> dict[str, Any]:
        """What the public functions and the reference take."""
        return {"causal": self.causal} | (self._mask_of_streams if self.streaming else {})

    @property
    def _mask_of_streams(self) -> dict[str, Any]:
        heads = [h >= self.full_heads for h in range(self.nheads_k)]
        window = {"window_size": (self.left, 0), "sink_size": self.sink}
        return {"causal": True, "streaming_heads": heads, **window}

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs under the mask, over all batches and heads."""
        sq, sk = self.seqlen_q, self.seqlen_k
        seen = [min(max(i + 1 + sk - sq, 0), sk) for i in range(sq)]
        of_full = sum(seen) if self.causal else sq * sk
        of_streams = sum(map(self._streamed, seen)) if self.streaming else 0
        group, streams = self.nheads // self.nheads_k, self.nheads_k - self.full_heads
        return (of_full * self.full_heads + of_streams * streams) * group * self.batch

    def _streamed(self, keys: int) -> int:
        """How many of the keys up to the diagonal a head that streams sees: window and sinks."""
        recent = min(keys, self.left + 1)
        return recent + min(self.sink, keys - recent)

    @property
    def flop(self) -> int:
        """A visible pair costs 8d forward (two QK of width d, one PV of width 2d), 20d backward.

        Of a group each signal costs 6d and 14d, and the noise 2d and 6d, which have no PV.
        """
        each, once = {"fwd": (6, 2), "decode": (6, 2), "bwd": (14, 6), "fwdbwd": (20, 8)}[
            self.direction
        ]
        groups = self.visible_pairs // self.signal_per_noise
        return (each * self.signal_per_noise + once) * self.headdim * groups

    @property
    def cache_bytes(self) -> int:
        """Bytes of K (two components of width d) and V (width 2d): what a decoding step reads."""
        streams = self.nheads_k - self.full_heads
        keys = self.seqlen_k * self.full_heads + self._streamed(self.seqlen_k) * streams
        return self.batch * keys * 4 * self.headdim * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        mask = "causal" if self.causal else "full"
        if self.streaming:
            streams = self.nheads_k - self.full_heads
            mask += f" {streams}/{self.nheads_k} streaming sink{self.sink} left{self.left}"
        heads = f"H{self.nheads}" + (f"/{self.nheads_k}" if self.nheads_k != self.nheads else "")
        if self.signal_per_noise > 1:
            heads += f" {self.signal_per_noise}:1"
        return (
            f"{self.direction} {self.dtype} B{self.batch} {heads} "
            f"Sq{self.seqlen_q} Sk{self.seqlen_k} d{self.headdim} {mask}"
        )


@dataclass
class Inputs:
    """The tensors of a problem, in the layout of the public functions."""

    problem: Problem
    q: Tensor  # (batch, seqlen_q, 2*nheads, d), or (batch, seqlen_q, groups, r + 1, d) of r > 1
    k: Tensor  # (batch, seqlen_k, 2*nheads_k, d)
    v: Tensor  # (batch, seqlen_k, nheads_k, 2*d)
    lam: Tensor  # () fp32
    dout: Tensor | None  # (batch, seqlen_q, nheads, 2*d), only where a backward is asked for

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What a training step differentiates: q, k, v and λ."""
        return (self.q, self.k, self.v, self.lam)


def make_inputs(p: Problem, seed: int = 0) -> Inputs:
    """Standard normal tensors; a seed gives the same values in every dtype, up to rounding."""
    gen = torch.Generator().manual_seed(seed)
    backward = p.direction in ("bwd", "fwdbwd")

    def normal(*shape: int) -> Tensor:
        x = torch.randn(*shape, generator=gen).to(p.device, DTYPES[p.dtype])
        return x.requires_grad_(backward)

    r = p.signal_per_noise
    heads = (2 * p.nheads,) if r == 1 else (p.nheads // r, r + 1)
    q = normal(p.batch, p.seqlen_q, *heads, p.headdim)
    k = normal(p.batch, p.seqlen_k, 2 * p.nheads_k, p.headdim)
    v = normal(p.batch, p.seqlen_k, p.nheads_k, 2 * p.headdim)
    dout = normal(p.batch, p.seqlen_q, p.nheads, 2 * p.headdim).detach() if backward else None
    lam = torch.tensor(LAMBDA, device=p.device).requires_grad_(backward)
    return Inputs(p, q, k, v, lam, dout)


def single(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The output of a public function that was called without return_lse."""
    assert isinstance(result, Tensor)
    return result


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

    each = x.q.shape[2] // x.problem.nheads_k  # query heads, or groups of maps
    q = x.q.detach()[b, :, each * h : each * (h + 1)].double()
    k = x.k.detach()[b, :, 2 * h : 2 * h + 2].double()  # (1, sk, 2, d)
    v = x.v.detach()[b, :, h : h + 1].double()  # (1, sk, 1, 2d)
    leaves = [t.requires_grad_(x.dout is not None) for t in (q, k, v)]
    lam = x.lam.detach().double()
    p = x.problem
    mask = p.mask | {"streaming_heads": [h >= p.full_heads]} if p.streaming else p.mask
    out = single(reference.diff_flash_attn_func(q, k, v, lam, **mask))
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
