"""What a launch may touch: of inputs their elements, read-only; of outputs each one, written."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Memory:
    """One tensor of a launch, as csrc/operands.h lists it; strides count elements."""

    name: str
    role: int
    address: int
    itemsize: int
    dims: list[str]
    sizes: list[int]
    strides: list[int]

    @property
    def written(self) -> bool:
        """Every element, of which none was defined before."""
        return self.role == 1

    @property
    def changed(self) -> bool:
        """Some elements perhaps, of which all were defined before."""
        return self.role == 2

    @property
    def end(self) -> int:
        steps = zip(self.sizes, self.strides, strict=True)
        return self.address + self.itemsize * (1 + sum((n - 1) * step for n, step in steps))


def described(p: Any) -> list[Memory]:
    """Every tensor of a launch; of outputs the rows with an owner."""
    memories = [Memory(*entry) for entry in p.operands()]
    found = {m.name: m for m in memories if m.address != 0 and 0 not in m.sizes}
    return [piece for memory in found.values() for piece in _owned(memory, found, p.shape)]


def _owned(memory: Memory, found: dict[str, Memory], shape: Any) -> Iterator[Memory]:
    """Of a packed output the rows that belong to a sequence: all if cu_seqlens are right."""
    which = next((x for x in "qk" if f"total_{x}" in memory.dims), None)
    if which is None or not memory.written:
        yield memory
        return
    at, offsets = memory.dims.index(f"total_{which}"), found[f"cu_seqlens_{which}"]
    cu = np.ctypeslib.as_array((ctypes.c_int32 * offsets.sizes[0]).from_address(offsets.address))
    cu = np.clip(cu.astype(np.int64), 0, memory.sizes[at])
    longest = cu[:-1] + getattr(shape, f"seqlen_{which}")
    owned = np.zeros(memory.sizes[at] + 2, np.int8)  # by row, and one beyond either end
    for first, last in zip(cu, np.minimum(cu[1:], longest), strict=False):
        owned[first + 1 : last + 1] = 1
    for begin, end in np.flatnonzero(np.diff(owned)).reshape(-1, 2).tolist():
        sizes = [*memory.sizes[:at], end - begin, *memory.sizes[at + 1 :]]
        shift = begin * memory.strides[at] * memory.itemsize
        yield replace(memory, address=memory.address + shift, sizes=sizes)
