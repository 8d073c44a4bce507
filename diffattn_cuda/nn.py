"""Multi-head differential attention as modules (Diff Transformer, arXiv 2410.05258), V1 and V2.

Both project x to q, k and v, call the fused kernel once (λ·O2 and, in V1, the headwise RMSNorm and
the factor 1 − λ_init are inside it), and project back.  With a `KVCache` the same forward
prefills and decodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import arguments, module_arguments
from .caches import KVCache, StreamingKVCache
from .module_base import Cache, DiffAttnBase

__all__ = [
    "KVCache",
    "MultiheadDiffAttn",
    "MultiheadDiffAttnV2",
    "StreamingKVCache",
    "lambda_init_fn",
    "rotary_tables",
]


def lambda_init_fn(depth: int) -> float:
    """λ_init of the layer at `depth`, counted from 0: 0.8 − 0.6·exp(−0.3·depth).

    Examples:
        >>> [round(lambda_init_fn(depth), 3) for depth in (0, 6, 27)]
        [0.2, 0.701, 0.8]
    """
    accepted = "the index of a layer, from 0"
    depth = module_arguments.integer("depth", depth, accepted)
    try:
        return 0.8 - 0.6 * math.exp(-0.3 * depth)
    except OverflowError:
        raise ValueError(f"depth is {depth}, accepted: {accepted}") from None


def rotary_tables(
    seqlen: int,
    rotary_dim: int,
    base: float = 10000.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Rotary embedding's tables, for the modules' `rel_pos`.

    Args:
        seqlen: number of positions, from 0.
        rotary_dim: features that are rotated, even; for the modules a multiple of 16 up to d.
        base: of the wavelengths, 2π to 2π·base positions.
        device: of the tables.
        dtype: of the tables; the angles are computed in fp32.

    Returns:
        (cos, sin), each (seqlen, rotary_dim/2).

    Examples:
        >>> cos, sin = rotary_tables(1024, 64)
        >>> cos.shape, sin[0].abs().max().item()
        (torch.Size([1024, 32]), 0.0)
    """
    seqlen, rotary_dim = module_arguments.integers(seqlen=seqlen, rotary_dim=rotary_dim)
    base = arguments.static_number("base", base, "a number")
    frequency = base ** -(torch.arange(0, rotary_dim, 2, device=device).float() / rotary_dim)
    angle = torch.outer(torch.arange(seqlen, device=device).float(), frequency)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class MultiheadDiffAttn(DiffAttnBase):
    """Differential attention as the paper has it (V1, arXiv 2410.05258).

        Y = concat_h( RMSNorm(softmax(s·Q1K1ᵀ)V − λ·softmax(s·Q2K2ᵀ)V) · (1 − λ_init) ) · W_out
        λ = exp⟨λ_q1, λ_k1⟩ − exp⟨λ_q2, λ_k2⟩ + λ_init

    Parameters carry the names of microsoft/unilm's `multihead_flashdiff_2`, so its checkpoints
    load; the output is its output, except that λ is not rounded to the input's dtype.

    Args:
        embed_dim: width of x.
        depth: index of the layer from 0; it sets λ_init = 0.8 − 0.6·exp(−0.3·depth).
        num_heads: heads of the output, half of what an ordinary transformer of this width has.
        num_kv_heads: KV heads (GQA), a divisor of num_heads / signal_per_noise, its default.
        lambda_init: overrides depth's λ_init (for example, Motif counts depth from −1).
        norm_affine: whether the headwise RMSNorm has a weight (2d,), one for all heads.
        norm_eps: its epsilon.
        causal: mask the future.
        window_size: (left, right) keys a query sees around its own place, inclusive; −1 = no limit.
        sink_size: as in `diff_flash_attn_func`.
        streaming_heads: as in `diff_flash_attn_func`, for the num_kv_heads KV heads.
        softcap: as in `diff_flash_attn_func`.
        lambda_dtype: round both exponentials and λ to this dtype, as unilm does with the input's
            (torch.bfloat16 gives its numbers); default: no rounding below fp32.
        implementation: "fused", or "eager" for `diffattn_cuda.reference`.
        device: of the parameters.
        dtype: of the parameters.
        head_dim: d, the width of queries and keys; default embed_dim / num_heads / 2.
        signal_per_noise: r, 1 to 8 signal heads that share a noise head (grouped differential
            attention). q_proj then has groups of r + 1 heads, num_heads / r of them, the noise
            last in each; k_proj has K of the signals and K of the noise for each KV head.

    Raises:
        ValueError: embed_dim is no multiple of 2·num_heads, num_heads none of signal_per_noise, or
            their quotient none of num_kv_heads.

    Examples:
        >>> attention = MultiheadDiffAttn(embed_dim=256, depth=0, num_heads=2)
        >>> rel_pos = rotary_tables(seqlen=100, rotary_dim=attention.head_dim)
        >>> attention(torch.randn(1, 20, 256), rel_pos).shape
        torch.Size([1, 20, 256])

        A prompt of 20 tokens, then one more:

        >>> cache = attention.make_cache(batch_size=1, capacity=100)
        >>> with torch.no_grad():
        ...     prompt = attention(torch.randn(1, 20, 256), rel_pos, cache)
        ...     token = attention(torch.randn(1, 1, 256), rel_pos, cache)
        >>> cache.seqlens
        tensor([21], dtype=torch.int32)
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        lambda_init: float | None = None,
        norm_affine: bool = True,
        norm_eps: float = 1e-5,
        causal: bool = True,
        window_size: tuple[int, int] = (-1, -1),
        sink_size: int = 0,
        streaming_heads: arguments.Heads = None,
        softcap: float = 0.0,
        lambda_dtype: torch.dtype | None = None,
        implementation: str = "fused",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        head_dim: int | None = None,
        signal_per_noise: int = 1,
    ) -> None:
        if head_dim is None:
            head_dim = module_arguments.head_dim(embed_dim, num_heads, components=2)
        super().__init__(
            embed_dim, num_heads, num_kv_heads, head_dim, 2, signal_per_noise,
            causal, window_size, sink_size, streaming_heads, softcap, implementation, device, dtype,
        )  # fmt: skip
        if lambda_init is None:
            lambda_init = lambda_init_fn(depth)
        self.lambda_init = arguments.static_number("lambda_init", lambda_init, "None or a number")
        self.lambda_dtype = lambda_dtype

        def lambda_vector() -> nn.Parameter:
            return nn.Parameter(
                torch.empty(self.head_dim, device=device, dtype=dtype).normal_(std=0.1)
            )

        self.lambda_q1, self.lambda_k1 = lambda_vector(), lambda_vector()
        self.lambda_q2, self.lambda_k2 = lambda_vector(), lambda_vector()
        norm_affine = arguments.flag("norm_affine", norm_affine)
        norm_eps = arguments.static_number("norm_eps", norm_eps, "a number >= 0")
        # Holds weight and eps, under unilm's name; the norm itself runs inside the kernel.
        self.subln = nn.RMSNorm(self.value_dim, norm_eps, norm_affine, device=device, dtype=dtype)

    def lambda_full(self) -> Tensor:
        """λ of this layer: 0-d, fp32 (fp64 for fp64 parameters), differentiable."""
        dtype = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        rounded = self.lambda_dtype or dtype
        lambda_1 = (self.lambda_q1 * self.lambda_k1).sum(dtype=dtype).exp().to(rounded)
        lambda_2 = (self.lambda_q2 * self.lambda_k2).sum(dtype=dtype).exp().to(rounded)
        return (lambda_1 - lambda_2 + self.lambda_init).to(dtype)

    def forward(
        self,
        x: Tensor,
        rel_pos: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Attention of x to itself and, with a cache, to what came before.

        Args:
            x: (batch, seqlen, embed_dim).
            rel_pos: rotary (cos, sin), each (≥ seqlen, rotary_dim/2), applied to interleaved pairs;
                with a cache one row for each of its slots.  None: no position embedding.
            cache: x continues the sequences in it: its keys and values are appended and seqlens
                advanced.  Without autograd (call under torch.no_grad() or inference_mode()).

        Returns:
            (batch, seqlen, embed_dim).

        Raises:
            ValueError: x or rel_pos has another shape, or a cache was given to a module that is
                not causal.
            TypeError: x has another dtype than the parameters.
        """
        self._check_forward(x, rel_pos, cache)
        return self._attend(
            x, self.lambda_full(), rel_pos, cache,
            norm_weight=self.subln.weight, norm_eps=self.subln.eps, out_scale=1 - self.lambda_init,
        )  # fmt: skip


class MultiheadDiffAttnV2(DiffAttnBase):
    """Differential attention V2 (microsoft/unilm's second version): λ per token and head, no norm.

        Y = concat_h( softmax(s·Q1Kᵀ)V − λ·softmax(s·Q2Kᵀ)V ) · W_out         λ = sigmoid(x·W_λ)

    It has twice the query heads of an ordinary transformer over the same keys and values; query
    heads 2h and 2h+1, which share a KV head, are subtracted.

    Args:
        embed_dim: width of x.
        num_heads: heads of the output.
        num_kv_heads: KV heads (GQA), a divisor of num_heads / signal_per_noise, its default.
        head_dim: d, the width of queries, keys and values; default embed_dim / num_heads.
        causal: mask the future.
        window_size: as in `MultiheadDiffAttn`.
        sink_size: as in `MultiheadDiffAttn`.
        streaming_heads: as in `MultiheadDiffAttn`.
        softcap: as in `MultiheadDiffAttn`.
        implementation: as in `MultiheadDiffAttn`.
        device: of the parameters.
        dtype: of the parameters.
        signal_per_noise: as in `MultiheadDiffAttn`; both kinds of maps share K.

    Raises:
        ValueError: embed_dim is no multiple of num_heads, num_heads none of signal_per_noise, or
            their quotient none of num_kv_heads.

    Examples:
        >>> attention = MultiheadDiffAttnV2(embed_dim=256, num_heads=4, num_kv_heads=2)
        >>> attention(torch.randn(1, 20, 256)).shape
        torch.Size([1, 20, 256])
        >>> attention.make_cache(1, 100).k.shape  # as an ordinary transformer's
        torch.Size([1, 100, 2, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        head_dim: int | None = None,
        causal: bool = True,
        window_size: tuple[int, int] = (-1, -1),
        sink_size: int = 0,
        streaming_heads: arguments.Heads = None,
        softcap: float = 0.0,
        implementation: str = "fused",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        signal_per_noise: int = 1,
    ) -> None:
        if head_dim is None:
            head_dim = module_arguments.head_dim(embed_dim, num_heads, components=1)
        super().__init__(
            embed_dim, num_heads, num_kv_heads, head_dim, 1, signal_per_noise,
            causal, window_size, sink_size, streaming_heads, softcap, implementation, device, dtype,
        )  # fmt: skip
        self.lambda_proj = nn.Linear(embed_dim, num_heads, bias=False, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        rel_pos: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As `MultiheadDiffAttn.forward`: (batch, seqlen, embed_dim) → the same."""
        self._check_forward(x, rel_pos, cache)
        logit = self.lambda_proj(x)
        lam = torch.sigmoid(logit.to(torch.promote_types(logit.dtype, torch.float32)))
        return self._attend(x, lam, rel_pos, cache)
