"""Multi-head differential attention as modules (Diff Transformer, arXiv 2410.05258), V1 and V2.

Both project x to q, k and v, call the fused kernel once (λ·O2 and, in V1, the headwise RMSNorm and
the factor 1 − λ_init are inside it), and project back.  With a `KVCache` the same forward
prefills and decodes.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, functional, module_arguments, reference, score_caps
from .caches import KVCache, StreamingKVCache
from .module_caches import check_cache, check_same_mask, make_cache, stored_in

_IMPLEMENTATIONS = {"fused": functional, "eager": reference}
Cache = KVCache | StreamingKVCache
_MASK = ("causal", "window_size", "sink_size", "streaming_heads")


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


class _DiffAttnBase(nn.Module):
    """Projections, rotary embedding and cache: what V1 and V2 share."""

    attention_override: Any = None  # instead of the implementation: gates and probes of duo

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None,
        head_dim: int,
        key_components: int,
        causal: bool,
        window_size: tuple[int, int],
        sink_size: int,
        streaming_heads: arguments.Heads,
        softcap: float,
        implementation: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        embed_dim, num_heads, num_kv_heads, head_dim = module_arguments.integers(
            embed_dim=embed_dim, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim
        )
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {num_kv_heads}; it must divide num_heads, which is {num_heads}"
            )
        module_arguments.check_implementation(implementation, _IMPLEMENTATIONS)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.key_components = key_components
        self.value_dim = key_components * head_dim  # V1: 2d, V2: d
        self.causal = arguments.flag("causal", causal)
        self.window_size = arguments.window_of(window_size)
        self.sink_size = sink_size
        self.streaming_heads = streaming_heads
        self.softcap = score_caps.softcap_of(softcap)
        self.implementation = implementation

        def linear(in_features: int, out_features: int) -> nn.Linear:
            return nn.Linear(in_features, out_features, bias=False, device=device, dtype=dtype)

        self.q_proj = linear(embed_dim, num_heads * 2 * head_dim)
        self.k_proj = linear(embed_dim, num_kv_heads * key_components * head_dim)
        self.v_proj = linear(embed_dim, num_kv_heads * self.value_dim)
        self.out_proj = linear(num_heads * self.value_dim, embed_dim)

    def make_cache(
        self,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        *,
        streaming_heads: arguments.Heads = None,
        sink: int | None = None,
        recent: int | None = None,
        max_new: int | None = None,
    ) -> Any:
        """An empty cache: a `KVCache`, or a `StreamingKVCache` if a keyword of its is given.

        Args:
            batch_size: sequences it holds.
            capacity: tokens a sequence may reach; if every head streams, it may go on.
            dtype: of keys and values; default that of the weights; under autocast give its dtype.
            streaming_heads: a bool for each of the num_kv_heads KV heads: those that have a ring.
                Default the module's, where None stands for all.
            sink: keys at the start of a sequence that they keep; default the module's sink_size.
            recent: the latest keys that they see, a row's own included; default the module's
                window_size[0] + 1.
            max_new: tokens that can be rewound; default 1. Steps of as many need no working memory.
        """
        own = self.streaming_heads, self.sink_size, self.window_size[0] + 1 or None
        given = streaming_heads, sink, recent, max_new
        new_zeros = partial(self.k_proj.weight.new_zeros, dtype=dtype)
        widths = self.head_dim, self.value_dim
        return make_cache(new_zeros, batch_size, capacity, self._cached_heads(), widths, own, given)

    def _cached_heads(self) -> tuple[int, int]:
        """Of K and of V."""
        return self.num_kv_heads * self.key_components, self.num_kv_heads

    def _attend(
        self,
        x: Tensor,
        lam: Tensor,
        rel_pos: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
        **epilogue: Any,
    ) -> Tensor:
        options = {"softcap": self.softcap, **epilogue}
        attention = self.attention_override or _IMPLEMENTATIONS[self.implementation]
        shape = (*x.shape[:2], self.num_kv_heads)
        q = self.q_proj(x).view(*x.shape[:2], self.num_heads, 2, self.head_dim)
        k = self.k_proj(x).view(*shape, self.key_components, self.head_dim)
        v = self.v_proj(x).view(*shape, self.value_dim)
        mask: dict[str, Any] = {name: getattr(self, name) for name in _MASK}
        cos, sin = (None, None) if rel_pos is None else (table.to(q.dtype) for table in rel_pos)
        if cache is None:
            if cos is not None and sin is not None:
                cos, sin = cos[: x.shape[1]], sin[: x.shape[1]]
                q, k = (reference.apply_rotary(heads, cos, sin) for heads in (q, k))
            out = attention.diff_flash_attn_func(q, k, v, lam, **mask, **options)
        else:
            full, mask = stored_in(cache, mask)
            out = attention.diff_flash_attn_with_kvcache(
                q, *full, lam, k, v, cos, sin, cache.seqlens, **mask, **options
            )
            cache.seqlens += x.shape[1]
        return self.out_proj(out.flatten(2))  # (batch, seqlen, embed_dim)

    def _check_forward(
        self, x: Tensor, rel_pos: tuple[Tensor, Tensor] | None, cache: Cache | None
    ) -> None:
        module_arguments.check_input(x, self.embed_dim, self.q_proj)
        if rel_pos is not None:
            seqlen = 0 if cache else x.shape[1]
            module_arguments.check_rel_pos(rel_pos, self.head_dim, seqlen, x.device)
        if cache is not None:
            widths = self.head_dim, self.value_dim
            check_cache(cache, self.causal, len(x), self._cached_heads(), widths)
            check_same_mask(cache, self.window_size, self.sink_size, self.streaming_heads)

    def extra_repr(self) -> str:
        mask = ", ".join(f"{name}={getattr(self, name)}" for name in (*_MASK, "softcap"))
        return (
            f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, {mask}, implementation={self.implementation!r}"
        )


class MultiheadDiffAttn(_DiffAttnBase):
    """Differential attention as the paper has it (V1, arXiv 2410.05258).

        Y = concat_h( RMSNorm(softmax(s·Q1K1ᵀ)V − λ·softmax(s·Q2K2ᵀ)V) · (1 − λ_init) ) · W_out
        λ = exp⟨λ_q1, λ_k1⟩ − exp⟨λ_q2, λ_k2⟩ + λ_init

    Parameters carry the names of microsoft/unilm's `multihead_flashdiff_2`, so its checkpoints
    load; the output is its output, except that λ is not rounded to the input's dtype.

    Args:
        embed_dim: width of x; the head dim is d = embed_dim / num_heads / 2.
        depth: index of the layer from 0; it sets λ_init = 0.8 − 0.6·exp(−0.3·depth).
        num_heads: heads of the output, half of what an ordinary transformer of this width has.
        num_kv_heads: KV heads (GQA), a divisor of num_heads; default num_heads.
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

    Raises:
        ValueError: embed_dim is no multiple of 2·num_heads, or num_heads none of num_kv_heads.

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
    ) -> None:
        head_dim = module_arguments.head_dim(embed_dim, num_heads, components=2)
        super().__init__(
            embed_dim, num_heads, num_kv_heads, head_dim, 2,
            causal, window_size, sink_size, streaming_heads, softcap, implementation, device, dtype,
        )  # fmt: skip
        if lambda_init is None:
            lambda_init = lambda_init_fn(depth)
        self.lambda_init = arguments.static_number("lambda_init", lambda_init, "None or a number")
        self.lambda_dtype = lambda_dtype

        def lambda_vector() -> nn.Parameter:
            return nn.Parameter(torch.empty(head_dim, device=device, dtype=dtype).normal_(std=0.1))

        self.lambda_q1, self.lambda_k1 = lambda_vector(), lambda_vector()
        self.lambda_q2, self.lambda_k2 = lambda_vector(), lambda_vector()
        norm_affine = arguments.flag("norm_affine", norm_affine)
        norm_eps = arguments.static_number("norm_eps", norm_eps, "a number >= 0")
        # Holds weight and eps, under unilm's name; the norm itself runs inside the kernel.
        self.subln = nn.RMSNorm(2 * head_dim, norm_eps, norm_affine, device=device, dtype=dtype)

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


class MultiheadDiffAttnV2(_DiffAttnBase):
    """Differential attention V2 (microsoft/unilm's second version): λ per token and head, no norm.

        Y = concat_h( softmax(s·Q1Kᵀ)V − λ·softmax(s·Q2Kᵀ)V ) · W_out         λ = sigmoid(x·W_λ)

    It has twice the query heads of an ordinary transformer over the same keys and values; query
    heads 2h and 2h+1, which share a KV head, are subtracted.

    Args:
        embed_dim: width of x.
        num_heads: heads of the output.
        num_kv_heads: KV heads (GQA), a divisor of num_heads; default num_heads.
        head_dim: d, the width of queries, keys and values; default embed_dim / num_heads.
        causal: mask the future.
        window_size: as in `MultiheadDiffAttn`.
        sink_size: as in `MultiheadDiffAttn`.
        streaming_heads: as in `MultiheadDiffAttn`.
        softcap: as in `MultiheadDiffAttn`.
        implementation: as in `MultiheadDiffAttn`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: embed_dim is no multiple of num_heads, or num_heads none of num_kv_heads.

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
    ) -> None:
        if head_dim is None:
            head_dim = module_arguments.head_dim(embed_dim, num_heads, components=1)
        super().__init__(
            embed_dim, num_heads, num_kv_heads, head_dim, 1,
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
