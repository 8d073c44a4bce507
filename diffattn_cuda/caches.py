"""What the modules of `nn` keep of the keys and values they have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import arguments
from .ring import Ring


class KVCache:
    """The keys and values one attention layer has seen, preallocated and filled in place.

    Made by a module's `make_cache`; a model keeps one for each of its layers.

    Attributes:
        k: (batch, capacity, 2·nheads_k, d), or nheads_k heads in V2.
        v: (batch, capacity, nheads_k, dv).
        seqlens: int32 (batch,), how many slots of each sequence are valid; the next forward writes
            behind them and advances them.  Assign to it to rewind or to start again.

    Examples:
        >>> from diffattn_cuda.nn import MultiheadDiffAttn
        >>> cache = MultiheadDiffAttn(256, depth=0, num_heads=2).make_cache(1, capacity=100)
        >>> cache.k.shape, cache.v.shape, cache.seqlens
        (torch.Size([1, 100, 4, 64]), torch.Size([1, 100, 2, 128]), tensor([0], dtype=torch.int32))
    """

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k = k
        self.v = v
        self.seqlens = torch.zeros(k.shape[0], dtype=torch.int32, device=k.device)


class StreamingKVCache:
    """A cache whose streaming heads take the same memory at any length: sinks and a ring.

    Full heads have `capacity` slots. A streaming head has those of its sinks, and a ring in which
    new keys overwrite those that have left the window. If every head streams, a sequence may be of
    any length. Made by a module's `make_cache`; the module then attends with the cache's mask.

    Attributes:
        full_k: (batch, capacity, 2·heads, d) of the full heads, or as many heads in V2.
        full_v: (batch, capacity, heads, dv).
        ring_k: (batch, slots, 2·heads, d) of the streaming heads, or as many heads in V2.
        ring_v: (batch, slots, heads, dv).
        seqlens: int32 (batch,), tokens of each sequence so far; the next forward advances them.
            Change them by `rewind` and `reset` alone.
        streaming_heads: a bool for each KV head.
        sink: keys at the start of a sequence that streaming heads keep.
        recent: the latest keys that they see, a row's own included.
        max_new: tokens that `rewind` can take back, at least.

    Examples:
        >>> from diffattn_cuda.nn import MultiheadDiffAttn
        >>> attention = MultiheadDiffAttn(256, depth=0, num_heads=2)
        >>> heads = {"streaming_heads": [False, True], "sink": 4, "recent": 60}
        >>> cache = attention.make_cache(1, capacity=1000, **heads)
        >>> cache.full_k.shape, cache.ring_k.shape
        (torch.Size([1, 1000, 2, 64]), torch.Size([1, 80, 2, 64]))
        >>> with torch.no_grad():
        ...     out = attention(torch.randn(1, 500, 256), cache=cache)
        >>> cache.seqlens
        tensor([500], dtype=torch.int32)
    """

    def __init__(
        self,
        full: tuple[Tensor, Tensor],
        streaming: tuple[Tensor, Tensor],
        streaming_heads: list[bool],
        sink: int,
        recent: int,
        max_new: int,
    ) -> None:
        self.full_k, self.full_v = full
        self.ring_k, self.ring_v = streaming
        self.streaming_heads = streaming_heads
        self.sink, self.recent, self.max_new = sink, recent, max_new
        batch, device = self.full_k.shape[0], self.full_k.device
        self.seqlens = torch.zeros(batch, dtype=torch.int32, device=device)
        self._longest = torch.zeros_like(self.seqlens)  # before tokens were taken back

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        return sum(t.nbytes for t in (self.full_k, self.full_v, self.ring_k, self.ring_v))

    def options(self) -> dict[str, Any]:
        """The mask and the rings, as `diff_flash_attn_with_kvcache` takes them."""
        if not any(self.streaming_heads):
            return {"causal": True}
        return {
            "causal": True,
            "window_size": (self.recent - 1, 0),
            "sink_size": self.sink,
            "streaming_heads": self.streaming_heads,
            "k_stream": self.ring_k,
            "v_stream": self.ring_v,
        }

    def reset(self) -> None:
        """Starts all sequences again."""
        self.seqlens.zero_()
        self._longest.zero_()

    def rewind(self, n: int | Sequence[int] | Tensor) -> None:
        """Takes back the last n tokens, for example those that speculation guessed wrong.

        Reads the lengths, which waits for a GPU.

        Args:
            n: tokens, for all sequences or one number for each.

        Raises:
            ValueError: fewer than 0 tokens, more than there are, or more than the rings hold keys
                for: after a rewind the next token still has its whole window. They hold at least
                max_new more, in all since the furthest token. Nothing is changed then.

        Examples:
            >>> from diffattn_cuda.nn import MultiheadDiffAttn
            >>> attention = MultiheadDiffAttn(256, depth=0, num_heads=2)
            >>> cache = attention.make_cache(1, 1000, sink=4, recent=60, max_new=5)
            >>> with torch.no_grad():
            ...     out = attention(torch.randn(1, 500, 256), cache=cache)
            >>> cache.rewind(5)
            >>> cache.seqlens
            tensor([495], dtype=torch.int32)
        """
        lengths: list[int] = self.seqlens.tolist()
        longest = torch.maximum(self._longest, self.seqlens)
        for b, (back, most) in enumerate(
            zip(self._each(n), map(self._slack, lengths, longest.tolist()), strict=True)
        ):
            if not 0 <= back <= lengths[b] or lengths[b] - back > self._sinks() and back > most:
                held = min(most, lengths[b])
                raise ValueError(
                    f"n is {back} for sequence {b} of {lengths[b]} tokens, accepted: 0 to {held}, "
                    f"for which its ring still holds the window (max_new is {self.max_new})"
                )
        back_to = self.seqlens - torch.tensor(
            self._each(n), dtype=torch.int32, device=self.seqlens.device
        )
        # Where all keys have slots of their own, nothing that was overwritten counts any more.
        self._longest.copy_(torch.where(back_to <= self._sinks(), back_to, longest))
        self.seqlens.copy_(back_to)

    def _sinks(self) -> int:
        return Ring.of_slots(self.ring_k.shape[1], self.sink).sink_slots

    def _slack(self, length: int, longest: int) -> int:
        """Tokens that can be taken back before the window of the next needs a key that is gone."""
        ring = Ring.of_slots(self.ring_k.shape[1], self.sink)
        if not any(self.streaming_heads) or longest <= ring.slots:
            return length
        return max(length - (self.recent - 1) - (longest - ring.ring_slots), 0)

    def _each(self, n: Any) -> list[int]:
        batch, accepted = len(self.seqlens), "an integer, or one for each sequence"
        if isinstance(n, Tensor):
            n = arguments.readable("n", n).tolist()
        if not isinstance(n, Sequence):
            return [arguments.integer("n", n, accepted)] * batch
        if len(n) != batch:
            raise ValueError(f"n has {len(n)} entries, accepted: {accepted}, which are {batch}")
        return [arguments.integer(f"n[{b}]", back, accepted) for b, back in enumerate(n)]
