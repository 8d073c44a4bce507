"""Random inputs in three regimes, and the problem they make.

normal  q, k, v ~ N(0, 1): logits of standard deviation 1.
init    logits of standard deviation 0.04 and a per-channel mean on V, as at initialisation: both
        maps are nearly uniform, O1 and O2 nearly equal, so the subtraction cancels.
sharp   logits of standard deviation 4: a few keys own each row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffattn_cuda import arguments

from .case import Case

LOGIT_SD = {"normal": 1.0, "init": 0.04, "sharp": 4.0}
NORM_EPS = 1e-5


def wide(dtype: torch.dtype) -> torch.dtype:
    """What lambda, the LSE and the accumulators have: fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Problem:
    """Tensors and options of one dense call, in canonical shapes."""

    q: Tensor  # (batch, seqlen_q, nheads, 2, d)
    k: Tensor  # (batch, seqlen_k, nheads_k, 1 or 2, d)
    v: Tensor  # (batch, seqlen_k, nheads_k, dv)
    lam: float | Tensor
    dout: Tensor  # (batch, seqlen_q, nheads, dv)
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    sink: int = 0
    streaming: tuple[bool, ...] | None = None  # for each KV head
    scale: float | None = None
    softcap: float = 0.0
    norm_weight: Tensor | None = None  # (dv,)
    norm_eps: float | None = None
    out_scale: float = 1.0
    dlse: Tensor | None = None  # (2, batch, nheads, seqlen_q)

    def mask(self) -> tuple[int, int, int, int]:
        """As the raw ops take it."""
        return arguments.mask_of(
            self.window, self.causal, self.sink, self.streaming, self.k.shape[2]
        )

    def options(self) -> dict[str, Any]:
        """The keyword arguments that follow q, k, v and lam."""
        return {
            "softmax_scale": self.scale,
            "causal": self.causal,
            "window_size": self.window,
            "sink_size": self.sink,
            "streaming_heads": self.streaming,
            "norm_weight": self.norm_weight,
            "norm_eps": self.norm_eps,
            "out_scale": self.out_scale,
            "softcap": self.softcap,
        }

    def softmax_scale(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.scale is None else self.scale

    def but(self, **changes: Any) -> Problem:
        return replace(self, **changes)

    def exact(self) -> Problem:
        """The same problem in fp64. A float lambda is what the kernel sees of it: fp32."""
        half = self.q.dtype != torch.float64
        lam = _fp32(self.lam) if isinstance(self.lam, float) and half else self.lam
        return replace(
            self,
            q=self.q.double(),
            k=self.k.double(),
            v=self.v.double(),
            lam=lam.double() if isinstance(lam, Tensor) else lam,
            dout=self.dout.double(),
            norm_weight=None if self.norm_weight is None else self.norm_weight.double(),
            dlse=None if self.dlse is None else self.dlse.double(),
        )

    def lam_rows(self, dtype: torch.dtype) -> Tensor:
        """Lambda spread to (batch, seqlen_q, nheads)."""
        lam = torch.as_tensor(self.lam, device=self.q.device, dtype=dtype)
        return lam.expand(self.q.shape[:3])


def _fp32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def flat(x: Tensor) -> Tensor:
    """(…, nheads, 2, d) to (…, 2 * nheads, d); V2 keys (…, nheads_k, 1, d) to (…, nheads_k, d)."""
    return x.flatten(-3, -2)


def make_lam(case: Case, generator: torch.Generator) -> float | Tensor:
    """One of the forms lambda may take, with values around those of trained models."""
    constants = {"float": 0.8, "zero": 0.0, "one": 1.0, "negative": -0.3}
    if case.lam in constants:
        return constants[case.lam]
    shapes: dict[str, tuple[int, ...]] = {
        "scalar": (),
        "head": (case.heads,),
        "token": (case.batch, case.sq, case.heads),
        "narrow": (case.batch, case.sq, case.heads),
    }
    logits = torch.randn(shapes[case.lam], generator=generator, dtype=torch.float64)
    # "narrow" is lambda in q's own dtype; every other tensor form is fp32 (fp64 for fp64).
    return torch.sigmoid(logits).to(case.dtype if case.lam == "narrow" else wide(case.dtype))


def make_problem(case: Case, device: torch.device | str = "cpu") -> Problem:
    """Draw the tensors of a case. Drawn on the CPU, so that every device sees the same bits."""
    generator = torch.Generator().manual_seed(case.seed + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    components = 1 if case.shared_k else 2
    gain = LOGIT_SD[case.regime] ** 0.5
    q = gain * normal(case.batch, case.sq, case.heads, 2, case.d)
    k = gain * normal(case.batch, case.sk, case.heads_k, components, case.d)
    v = normal(case.batch, case.sk, case.heads_k, case.dv)
    if case.regime == "init":
        v = 0.5 * v + 2 * normal(1, 1, case.heads_k, case.dv)
    dout = normal(case.batch, case.sq, case.heads, case.dv)
    weight = 1 + 0.2 * normal(case.dv)
    lam = make_lam(case, generator)
    dlse = normal(2, case.batch, case.heads, case.sq) if case.lse else None

    def place(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(device)

    return Problem(
        q=place(q, case.dtype),
        k=place(k, case.dtype),
        v=place(v, case.dtype),
        lam=lam.to(device) if isinstance(lam, Tensor) else lam,
        dout=place(dout, case.dtype),
        causal=case.causal,
        window=case.window,
        sink=case.sink,
        streaming=case.streaming,
        scale=case.scale,
        softcap=case.softcap,
        norm_weight=place(weight, wide(case.dtype)) if case.norm == "affine" else None,
        norm_eps=None if case.norm == "none" else NORM_EPS,
        out_scale=case.out_scale,
        dlse=None if dlse is None else place(dlse, wide(case.dtype)),
    )
