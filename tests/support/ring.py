"""Rings for streaming heads next to a cache of full heads, NaN wherever a step may not read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffattn_cuda.ring import Ring

from .cache import rotate
from .data import Problem, flat
from .impls import Impl


@dataclass
class Rings:
    """The keys and values of a problem, as a step finds them."""

    problem: Problem  # keys of all heads, as many as there will ever be
    ring: Ring
    k: Tensor  # of full heads
    v: Tensor
    k_stream: Tensor
    v_stream: Tensor
    arguments: dict[str, Any] = field(default_factory=dict)  # beyond k_stream and v_stream

    def streaming(self) -> list[int]:
        """The KV heads with a ring."""
        streams = self.problem.streaming or [True] * self.problem.k.shape[2]
        return [head for head, streaming in enumerate(streams) if streaming]

    def full(self) -> list[int]:
        return [head for head in range(self.problem.k.shape[2]) if head not in self.streaming()]

    def row(self, sequence: int) -> int:
        where = self.arguments.get("cache_batch_idx")
        return sequence if where is None else int(where[sequence])

    def store(
        self, sequence: int, length: int, pad: int = 0, rotated: Tensor | None = None
    ) -> None:
        """Writes `length` keys as many steps would have, and poisons what no later row sees."""
        p, row, heads = self.problem, self.row(sequence), self.streaming()
        k = p.k if rotated is None else rotated
        full = self.full()
        self.k[row, pad:length] = flat(k[sequence, pad:length, full])
        self.v[row, pad:length] = p.v[sequence, pad:length, full]
        for key in self.seen_later(length - pad):
            slot = self.ring.slot(key)
            self.k_stream[row, slot] = flat(k[sequence, pad + key, heads])
            self.v_stream[row, slot] = p.v[sequence, pad + key, heads]

    def seen_later(self, keys: int) -> list[int]:
        """Keys from the padding on that a row behind them sees."""
        left, sink = self.problem.window[0], self.problem.sink
        return [key for key in range(keys) if key < sink or key >= keys - left]

    def poison(self, sequence: int, keys: int) -> None:
        """NaN in every slot whose key no later row sees."""
        row, kept = self.row(sequence), {self.ring.slot(key) for key in self.seen_later(keys)}
        gone = [slot for slot in range(self.ring.slots) if slot not in kept]
        self.k_stream[row, gone], self.v_stream[row, gone] = torch.nan, torch.nan

    def call(self, impl: Impl, q: Tensor, k: Tensor | None, v: Tensor | None, **extra: Any) -> Any:
        """A step; q and k are 5-D and go in flat."""
        options = self.problem.options() | self.arguments | extra
        return impl.kvcache(
            flat(q), self.k, self.v, options.pop("lam", self.problem.lam),
            None if k is None else flat(k), v, k_stream=self.k_stream, v_stream=self.v_stream,
            **options,
        )  # fmt: skip


def make_rings(problem: Problem, new: int, capacity: int, rows: int | None = None) -> Rings:
    """Empty ones: all NaN. The ring is as long as steps of `new` tokens need."""
    streams = problem.streaming or [True] * problem.k.shape[2]
    streaming = sum(streams)
    rows = problem.k.shape[0] if rows is None else rows
    ring = Ring.of_step(problem.sink, problem.window[0] + 1, new)
    components, d, dv = problem.k.shape[3], problem.k.shape[4], problem.v.shape[3]

    def nan(slots: int, heads: int, width: int) -> Tensor:
        return torch.full((rows, slots, heads, width), torch.nan).to(problem.v)

    full = len(streams) - streaming
    return Rings(
        problem, ring, nan(capacity, components * full, d), nan(capacity, full, dv),
        nan(ring.slots, components * streaming, d), nan(ring.slots, streaming, dv),
    )  # fmt: skip


def rotated(x: Tensor, first: int, cos: Tensor, sin: Tensor, interleaved: bool = True) -> Tensor:
    """(batch, seqlen, ..) at positions from `first` on."""
    positions = list(range(first, first + x.shape[1]))
    return torch.stack([rotate(row, positions, cos, sin, interleaved) for row in x])
