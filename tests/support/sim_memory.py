"""What a launch may touch: of inputs their elements, read-only; of outputs each one, written."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Memory:
    """One tensor of a launch; strides count elements."""

    name: str
    address: int
    itemsize: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    written: bool = False
    scratch: bool = False

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


def described(p: Any, workspace_bytes: Callable[[Any], int]) -> list[Memory]:
    """Every tensor of the params, as csrc/diffattn.h has it; of outputs the rows with an owner."""
    s, packed = p.shape, p.varlen.cu_seqlens_q != 0
    batch = 1 if packed else s.batch
    total_q = p.varlen.total_q if packed else s.seqlen_q
    total_k = p.varlen.total_k if packed else s.seqlen_k

    def rows(name: str, v: Any, rows: int, heads: int, comps: int, width: int) -> Memory:
        sizes, strides = (batch, rows, heads, comps, width), (v.batch, v.row, v.head, v.comp, 1)
        return Memory(name, v.data, 2, sizes, strides)

    def numbers(name: str, v: Any, comps: int) -> Memory:
        sizes, strides = (batch, total_q, s.nheads, comps), (v.batch, v.row, v.head, v.comp)
        return Memory(name, v.data, 4, sizes, strides)

    def vector(name: str, address: int, size: int) -> Memory:
        return Memory(name, address, 4, (size,), (1,))

    inputs = [
        rows("q", p.q, total_q, s.nheads, 2, s.headdim),
        rows("k", p.k, total_k, s.nheads_k, s.k_components, s.headdim),
        rows("v", p.v, total_k, s.nheads_k, 1, s.headdim_v),
        numbers("lam", p.lam, 1),
        vector("norm_weight", p.norm.weight, s.headdim_v),
        vector("cu_seqlens_q", p.varlen.cu_seqlens_q, s.batch + 1),
        vector("cu_seqlens_k", p.varlen.cu_seqlens_k, s.batch + 1),
    ]
    saved = [
        rows("o", p.o, total_q, s.nheads, 1, s.headdim_v),
        rows("o2", p.o2, total_q, s.nheads, 1, s.headdim_v),
        numbers("lse", p.lse, 2),
        numbers("rstd", p.rstd, 1),
    ]
    if not hasattr(p, "dout"):
        outputs = [rows("out", p.out, total_q, s.nheads, 1, s.headdim_v), *saved]
        return _existing(inputs, _of_queries(outputs, p))
    inputs += [
        *saved,
        rows("dout", p.dout, total_q, s.nheads, 1, s.headdim_v),
        numbers("dlse", p.dlse, 2),
    ]
    of_queries = [rows("dq", p.dq, total_q, s.nheads, 2, s.headdim), numbers("dlam", p.dlam, 1)]
    of_keys = [
        rows("dk", p.dk, total_k, s.nheads_k, s.k_components, s.headdim),
        rows("dv", p.dv, total_k, s.nheads_k, 1, s.headdim_v),
    ]
    outputs = [
        *_of_queries(of_queries, p),
        *_of_keys(of_keys, p),
        vector("dnorm_weight", p.dnorm_weight, s.headdim_v),
    ]
    # What of the workspace is written is the kernels' own affair; nothing of it is defined at first.
    scratch = Memory("workspace", p.workspace, 1, (workspace_bytes(p),), (1,), scratch=True)
    return _existing([*inputs, scratch], outputs)


def _existing(inputs: list[Memory], outputs: list[Memory]) -> list[Memory]:
    outputs = [replace(memory, written=True) for memory in outputs]
    return [memory for memory in inputs + outputs if memory.exists()]


def _of_queries(memories: list[Memory], p: Any) -> list[Memory]:
    return _by_sequence(memories, p, p.varlen.cu_seqlens_q, p.varlen.total_q, p.shape.seqlen_q)


def _of_keys(memories: list[Memory], p: Any) -> list[Memory]:
    return _by_sequence(memories, p, p.varlen.cu_seqlens_k, p.varlen.total_k, p.shape.seqlen_k)


def _by_sequence(
    memories: list[Memory], p: Any, cu_seqlens: int, total: int, longest: int
) -> list[Memory]:
    memories = [memory for memory in memories if memory.exists()]
    if cu_seqlens == 0:
        return memories
    ends = np.array((ctypes.c_int32 * (p.shape.batch + 1)).from_address(cu_seqlens))
    return [part for memory in memories for part in _owned(memory, ends, total, longest)]


def _owned(memory: Memory, ends: Any, total: int, longest: int) -> Iterator[Memory]:
    """The rows of a packed output that belong to a sequence: all, if cu_seqlens are right."""
    owned = np.zeros(total + 2, np.int8)
    for first, last in zip(ends[:-1], ends[1:], strict=True):
        last = min(last, first + longest)
        owned[1 + np.clip(first, 0, total) : 1 + np.clip(last, 0, total)] = 1
    for first, last in np.flatnonzero(np.diff(owned)).reshape(-1, 2).tolist():
        _, *others = memory.sizes[1:]
        address = memory.address + first * memory.strides[1] * memory.itemsize
        yield replace(memory, address=address, sizes=(1, last - first, *others))


@contextmanager
def registered(device: Any, memories: list[Memory]) -> Iterator[None]:
    """The device knows these memories, and afterwards each output has been written."""
    regions = [(group, _register(device, group)) for group in _overlapping(memories)]
    try:
        yield
        for group, region in regions:
            if region.undefined_bytes and not any(memory.scratch for memory in group):
                raise AssertionError(_unwritten(group, region))
    finally:
        for _, region in regions:
            region.unregister()


def _overlapping(memories: list[Memory]) -> list[list[Memory]]:
    """Groups of memories whose ranges interleave: views of one storage."""
    groups: list[list[Memory]] = []
    end = 0
    for memory in sorted(memories, key=lambda m: m.address):
        if groups and memory.address < end:
            groups[-1].append(memory)
        else:
            groups.append([memory])
        end = max(end, memory.end)
    return groups


def _register(device: Any, group: list[Memory]) -> Any:
    first, end = group[0].address, max(memory.end for memory in group)
    name = "+".join(dict.fromkeys(memory.name for memory in group))
    writable = any(memory.written or memory.scratch for memory in group)
    region = device.register(first, end - first, name, writable=writable)
    for memory in group:
        sizes, strides, piece = memory.blocks()
        region.allow(memory.address - first, sizes, strides, piece, defined=not (memory.written or memory.scratch))
    return region


def _unwritten(group: list[Memory], region: Any) -> str:
    missing = np.flatnonzero(region.undefined())
    address = group[0].address + int(missing[0])
    memory = [m for m in group if m.written and m.address <= address][-1]
    offset = (address - memory.address) // memory.itemsize
    index = [0] * len(memory.sizes)
    for dim in sorted(range(len(index)), key=lambda dim: -memory.strides[dim]):
        if memory.sizes[dim] > 1 and memory.strides[dim] > 0:
            index[dim], offset = divmod(offset, memory.strides[dim])
    return (
        f"{memory.name}: {len(missing)} bytes were never written, the first at {tuple(index)} of "
        f"{memory.sizes}"
    )
