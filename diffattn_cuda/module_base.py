"""What the differential layers of `nn` share: projections, rotary embedding, and the cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, functional, module_arguments, reference, score_caps
from .caches import KVCache, StreamingKVCache
from .module_caches import check_cache, check_same_mask, make_cache, stored_in

IMPLEMENTATIONS = {"fused": functional, "eager": reference}
Cache = KVCache | StreamingKVCache
_MASK = ("causal", "window_size", "sink_size", "streaming_heads")


class DiffAttnBase(nn.Module):
    """What V1 and V2 share. Query heads come in groups: some signals, then their noise."""

    attention_override: Any = None  # instead of the implementation: gates and probes of duo

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None,
        head_dim: int,
        key_components: int,
        signal_per_noise: int,
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
        embed_dim, head_dim = module_arguments.integers(embed_dim=embed_dim, head_dim=head_dim)
        num_heads, num_kv_heads, signal_per_noise = module_arguments.head_counts(
            num_heads, num_kv_heads, signal_per_noise
        )
        module_arguments.check_implementation(implementation, IMPLEMENTATIONS)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.signal_per_noise = signal_per_noise
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

        maps = num_heads + num_heads // signal_per_noise
        self.q_proj = linear(embed_dim, maps * head_dim)
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
        attention = self.attention_override or IMPLEMENTATIONS[self.implementation]
        shape = (*x.shape[:2], self.num_kv_heads)
        groups, r = self.num_heads // self.signal_per_noise, self.signal_per_noise
        q = self.q_proj(x).view(*x.shape[:2], groups, r + 1, self.head_dim)
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
            f"head_dim={self.head_dim}, signal_per_noise={self.signal_per_noise}, {mask}, "
            f"implementation={self.implementation!r}"
        )
