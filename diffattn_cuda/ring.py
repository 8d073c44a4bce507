"""The ring cache of streaming heads: where a key lies, and in eager PyTorch what a step does to it.

A sequence's keys are counted from its padding, which has no slot. The first ones, the sinks, have
slots of their own; a later key takes the slot of the key that many slots before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

BLOCK = 16  # keys that kernels read at a time: none of their blocks crosses the wrap


def round_up(n: int) -> int:
    """To whole blocks."""
    return -(-n // BLOCK) * BLOCK


@dataclass(frozen=True)
class Ring:
    """How the slots of a ring are used.

    Examples:
        >>> ring = Ring.of_step(sink=4, recent=20, new=1)
        >>> ring.slots, [ring.slot(key) for key in (0, 15, 16, 47, 48)]
        (48, [0, 15, 16, 47, 16])
    """

    sink_slots: int
    ring_slots: int

    @classmethod
    def of_step(cls, sink: int, recent: int, new: int) -> Ring:
        """The smallest that holds what `new` tokens see without overwriting any of it."""
        return cls(round_up(sink), round_up(recent + new - 1))

    @classmethod
    def of_slots(cls, slots: int, sink: int) -> Ring:
        """What a cache of so many slots is used as."""
        return cls(round_up(sink), slots - round_up(sink))

    @property
    def slots(self) -> int:
        return self.sink_slots + self.ring_slots

    def slot(self, key: int) -> int:
        if key < self.sink_slots:
            return key
        return self.sink_slots + (key - self.sink_slots) % self.ring_slots

    def kept(self, first: int, end: int, keys: int) -> Iterator[int]:
        """Of first <= key < end, those that still have their slot when so many keys are written."""
        for key in range(max(first, 0), end):
            if key < self.sink_slots or key >= keys - self.ring_slots:
                yield key


def attend_by_kind(
    attend: Callable[..., Any],
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lam: float | Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    k_stream: Tensor,
    v_stream: Tensor,
    streaming_heads: Any,
    mask: dict[str, Any],
    places: dict[str, Any],
    **options: Any,
) -> Any:
    """The reference's step over two caches: each kind of heads by itself, from a plain cache.

    Args:
        attend: the reference without a ring.
        q: 5-D, as are k_cache, k and k_stream.
        k_cache: of full heads.
        v_cache: of full heads.
        lam: λ.
        k: of all heads.
        v: of all heads.
        k_stream: of streaming heads.
        v_stream: of streaming heads.
        streaming_heads: None, or a bool for each KV head.
        mask: window_size and sink_size.
        places: cache_seqlens, cache_batch_idx, cache_leftpad, block_table.
        options: the other arguments of `attend`.
    """
    nheads_k = v_cache.shape[2] + v_stream.shape[2]
    streams = [True] * nheads_k if streaming_heads is None else [bool(s) for s in streaming_heads]
    group, r = q.shape[2] // nheads_k, q.shape[3] - 1
    outs, order = [], []

    def outputs(heads: list[int]) -> list[int]:
        """Those of heads that are groups of r signal maps."""
        return [h * r + i for h in heads for i in range(r)]

    for streaming in (False, True):
        kv_heads = [h for h in range(nheads_k) if streams[h] == streaming]
        if not kv_heads:
            continue
        heads = [h * group + member for h in kv_heads for member in range(group)]
        k_new, v_new = (None if t is None else t[:, :, kv_heads] for t in (k, v))
        own = lam
        if isinstance(lam, Tensor) and lam.dim():
            own = lam[..., heads if lam.shape[-1] == q.shape[2] else outputs(heads)]
        step = partial(_from_ring if streaming else _from_cache, attend, q[:, :, heads], own)
        caches = (k_stream, v_stream) if streaming else (k_cache, v_cache)
        outs.append(step(k_new, v_new, *caches, mask, places, **options))
        order += heads
    # Heads of out or o, and of the LSE: (r + 1, b, h, sq), or (b, h, r + 1, sq) of components.
    components = options["return_components"]
    back = sorted(range(len(order)), key=order.__getitem__)
    places_of = ((2, back if components else outputs(back)), (1 if components else 2, back))
    return tuple(
        torch.cat(parts, dim).index_select(dim, torch.tensor(heads, device=q.device))
        for parts, (dim, heads) in zip(zip(*outs, strict=True), places_of, strict=True)
    )


def _from_cache(
    attend: Callable[..., Any],
    q: Tensor,
    lam: float | Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    mask: dict[str, Any],
    places: dict[str, Any],
    **options: Any,
) -> Any:
    """Of full heads, which have no window."""
    return attend(q, k_cache, v_cache, lam, k, v, causal=True, **places, **options)


def _from_ring(
    attend: Callable[..., Any],
    q: Tensor,
    lam: float | Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    k_stream: Tensor,
    v_stream: Tensor,
    mask: dict[str, Any],
    places: dict[str, Any],
    **options: Any,
) -> Any:
    """Spreads the ring over a cache of all keys, in which its step is any other's."""
    ring = Ring.of_slots(k_stream.shape[1], mask["sink_size"])
    new = 0 if k is None else k.shape[1]

    def listed(name: str, default: list[int]) -> list[int]:
        given = places[name]
        return (
            given.tolist() if isinstance(given, Tensor) else [given] * len(q) if given else default
        )

    lengths, pads = (listed(name, [0] * len(q)) for name in ("cache_seqlens", "cache_leftpad"))
    rows = listed("cache_batch_idx", [*range(len(q))])
    capacity = max(lengths, default=0) + new
    spread = [t.new_zeros(len(q), capacity, *t.shape[2:]) for t in (k_stream, v_stream)]
    pairs = list(zip((k_stream, v_stream), spread, strict=True))
    for b, (length, pad) in enumerate(zip(lengths, pads, strict=True)):
        for key in ring.kept(0, length - pad, length - pad):
            for stored, plain in pairs:
                plain[b, pad + key] = stored[rows[b], ring.slot(key)]
    plain_places = {
        "cache_seqlens": places["cache_seqlens"],
        "cache_leftpad": places["cache_leftpad"],
    }
    out = attend(q, *spread, lam, k, v, causal=True, **mask, **plain_places, **options)
    for b, (length, pad) in enumerate(zip(lengths, pads, strict=True)):
        keys = length + new - pad
        for key in ring.kept(length - pad, keys, keys):
            for stored, plain in pairs:
                stored[rows[b], ring.slot(key)] = plain[b, pad + key]
    return out
