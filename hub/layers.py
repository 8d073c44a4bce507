"""Layers for `kernels.kernelize`: a forward alone, over parameters of the layer that adopts it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .functional import diff_flash_attn_func
from .reference import apply_rotary


class MultiheadDiffAttn(nn.Module):
    """Forward of microsoft/unilm's MultiheadFlashDiff1 and MultiheadFlashDiff2 (V1), causal.

    λ stays in fp32, where unilm rounds it to the dtype of q.
    """

    can_torch_compile = True

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor
    lambda_init: float
    subln: Any  # a headwise RMSNorm: its weight and eps
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def forward(
        self, x: Tensor, rel_pos: tuple[Tensor, Tensor], attn_mask: Tensor | None = None
    ) -> Tensor:
        if attn_mask is not None:
            raise NotImplementedError("attn_mask has to be None: the kernel is causal by itself")
        batch, seqlen, _ = x.shape
        q = self.q_proj(x).view(batch, seqlen, self.num_heads, 2, self.head_dim)
        k = self.k_proj(x).view(batch, seqlen, self.num_kv_heads, 2, self.head_dim)
        v = self.v_proj(x).view(batch, seqlen, self.num_kv_heads, 2 * self.head_dim)
        cos, sin = (table[:seqlen].to(q.dtype) for table in rel_pos)
        q, k = (apply_rotary(heads, cos, sin) for heads in (q, k))
        e1 = (self.lambda_q1.float() * self.lambda_k1.float()).sum().exp()
        e2 = (self.lambda_q2.float() * self.lambda_k2.float()).sum().exp()
        weight = getattr(self.subln, "weight", None)
        out: Tensor = diff_flash_attn_func(
            q, k, v, e1 - e2 + self.lambda_init, causal=True, norm_weight=weight,
            norm_eps=self.subln.eps, out_scale=1 - self.lambda_init,
        )  # fmt: skip
        return torch.nn.functional.linear(out.flatten(2), self.out_proj.weight)


__all__ = ["MultiheadDiffAttn"]
