"""What a launch may touch: of inputs their elements, read-only; of outputs each one, written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Memory:
    """One tensor of a launch; strides count elements."""

    name: str
    address: int
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    written: bool = False  # every element, of which none was defined before
    changed: bool = False  # some elements perhaps, of which all were defined before

    @property
    def end(self) -> int:
        steps = zip(self.sizes, self.strides, strict=True)
        return self.address + self.itemsize * (1 + sum((n - 1) * step for n, step in steps))

    def exists(self) -> bool:
        return self.address != 0 and 0 not in self.sizes

    def blocks(self) -> tuple[list[int], list[int], int]:
        """Sizes and strides in bytes of the largest contiguous pieces, and a piece's bytes."""
        piece, sizes, strides = self.itemsize, [], []
        for stride, size in sorted(zip(self.strides, self.sizes, strict=True)):
            if size == 1 or stride == 0:
                continue
            if stride * self.itemsize == piece:
                piece *= size
            else:
                sizes.append(size)
                strides.append(stride * self.itemsize)
        return sizes, strides, piece


def described(p: Any) -> list[Memory]:
    """Every tensor of a launch, by csrc/operands.h; of outputs the rows with an owner."""
    return [memory for entry in p.operands() for memory in _pieces(*entry) if memory.exists()]


def _pieces(
    name: str,
    role: int,
    address: int,
    itemsize: int,
    sizes: list[int],
    strides: list[int],
    row_dim: int,
    runs: list[tuple[int, int]] | None,
) -> Iterator[Memory]:
    written, changed = role == 1, role == 2  # Role of csrc/operands.h
    whole = Memory(name, address, itemsize, tuple(sizes), tuple(strides), written, changed)
    if not written or runs is None or not whole.exists():
        yield whole
        return
    for first, last in runs:
        sizes[row_dim] = last - first
        shift = first * strides[row_dim] * itemsize
        yield replace(whole, address=address + shift, sizes=tuple(sizes))
