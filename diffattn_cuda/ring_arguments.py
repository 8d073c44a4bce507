"""What `diff_flash_attn_with_kvcache` demands of the caches of streaming heads."""

from __future__ import annotations

from torch import Tensor

from . import arguments


def cached_heads(
    k_cache: Tensor, v_cache: Tensor, k_stream: Tensor | None, v_stream: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """k_cache and k_stream with a component dimension."""
    if k_stream is None and v_stream is None:
        return arguments.key_heads(k_cache, v_cache, "k_cache", "v_cache", 4), None
    arguments.require_tensor("k_cache", k_cache)
    arguments.require_tensor("v_cache", v_cache)
    arguments.require_tensor("k_stream", k_stream)
    arguments.require_tensor("v_stream", v_stream)
    assert k_stream is not None and v_stream is not None
    k_stream = arguments.key_heads(k_stream, v_stream, "k_stream", "v_stream", 4)
    known = k_cache.dim() == 4 and v_cache.dim() in (4, 5)  # V whole or in halves
    if known and k_cache.shape[2] == v_cache.shape[2] == 0:
        # No head tells how many maps it has. unflatten() multiplies sizes, which may overflow.
        return k_cache.unsqueeze(3).expand(-1, -1, -1, k_stream.shape[3], -1), k_stream
    return arguments.key_heads(k_cache, v_cache, "k_cache", "v_cache", 4), k_stream


def check_mask(mask: tuple[int, int, int, int], causal: bool) -> None:
    """A ring has the keys of sinks and a window alone."""
    if not causal:
        raise ValueError("k_stream was given with causal=False, accepted: causal=True")
    if mask[0] < 0:
        raise ValueError(
            "k_stream was given, but every head sees every key: window_size[0] is unbounded, or "
            "streaming_heads has no True; accepted: a window, and a head that streams"
        )
