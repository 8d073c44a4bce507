"""How the modules of `nn` make their caches, check them, and hand them to a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import arguments, module_arguments
from .caches import KVCache, StreamingKVCache
from .ring import Ring


def check_cache(
    cache: KVCache | StreamingKVCache,
    causal: bool,
    batch: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
) -> None:
    """That it fits a module: `heads` are those of K and V."""
    if not causal:
        raise ValueError("cache was given to a module with causal=False; decoding is causal")
    if isinstance(cache, StreamingKVCache):
        streams = cache.streaming_heads
        if len(streams) != heads[1]:
            raise ValueError(
                f"cache.streaming_heads has {len(streams)} entries, the module has {heads[1]} KV "
                "heads"
            )
        for kind, streaming in (("full", False), ("ring", True)):
            own = streams.count(streaming)
            names = f"cache.{kind}_k", f"cache.{kind}_v"
            k, v = (getattr(cache, name.removeprefix("cache.")) for name in names)
            counts = heads[0] // heads[1] * own, own
            module_arguments.check_cached(k, v, batch, counts, widths, names)
    else:
        module_arguments.check_cached(cache.k, cache.v, batch, heads, widths)
    module_arguments.check_seqlens(cache.seqlens, batch)


def stored_in(
    cache: KVCache | StreamingKVCache, mask: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """The caches of full heads and the other options of a step of a module with this mask."""
    if isinstance(cache, StreamingKVCache):
        return (cache.full_k, cache.full_v), cache.options()
    return (cache.k, cache.v), mask


def check_same_mask(
    cache: KVCache | StreamingKVCache,
    window_size: tuple[int, int],
    sink_size: int,
    streaming_heads: arguments.Heads,
) -> None:
    """A module that has a window of its own sees the same with a cache."""
    if window_size[0] < 0 or not isinstance(cache, StreamingKVCache):
        return
    streams = arguments.heads_of(streaming_heads, len(cache.streaming_heads))
    own = {"recent": window_size[0] + 1, "sink": sink_size, "streaming_heads": streams}
    for name, value in own.items():
        if getattr(cache, name) != value:
            raise ValueError(
                f"cache.{name} is {getattr(cache, name)}, the module's mask has {value}: accepted "
                "are the same, or a module without a window, which sees what its cache says"
            )


def make_cache(
    new_zeros: Callable[..., Tensor],
    batch_size: int,
    capacity: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    own: tuple[arguments.Heads, int, int | None],
    given: tuple[arguments.Heads, int | None, int | None, int | None],
) -> KVCache | StreamingKVCache:
    """An empty cache of a module.

    Args:
        new_zeros: makes its tensors.
        batch_size: sequences.
        capacity: tokens of a full head.
        heads: of K and V.
        widths: of K and V.
        own: the module's streaming_heads, sink and recent, None without a window.
        given: those of the call, None for the module's, and max_new. All None: a `KVCache`.
    """
    batch_size, capacity = module_arguments.integers(batch_size=batch_size, capacity=capacity)

    def pair(slots: int, kv_heads: int) -> tuple[Tensor, Tensor]:
        counts = heads[0] // heads[1] * kv_heads, kv_heads
        k, v = (new_zeros(batch_size, slots, *size) for size in zip(counts, widths, strict=True))
        return k, v

    if all(value is None for value in given):
        return KVCache(*pair(capacity, heads[1]))
    streaming_heads = own[0] if given[0] is None else given[0]
    sink, recent = (own[i] if given[i] is None else given[i] for i in (1, 2))
    max_new = 1 if given[3] is None else given[3]
    if recent is None:
        raise ValueError("recent is None, accepted: an integer, because the module has no window")
    sink, recent, max_new = module_arguments.integers(sink=sink, recent=recent, max_new=max_new)
    for name, value, least in (("sink", sink, 0), ("recent", recent, 1), ("max_new", max_new, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}, accepted: an integer >= {least}")
    streams = arguments.heads_of(streaming_heads, heads[1])
    full = pair(capacity, streams.count(False))
    streaming = pair(Ring.of_step(sink, recent, max_new).slots, streams.count(True))
    return StreamingKVCache(full, streaming, streams, sink, recent, max_new)
