"""What a launch may touch: of inputs their elements, read-only; of outputs each one, written."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
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


# Whether each byte has been written is not followed in tensors that are only sparsely there.
FOLLOWED = 1 << 28


def described(p: Any) -> list[Memory]:
    """Every tensor of a launch, as csrc/diffattn.h has it."""
    return _of_training(p) if hasattr(p, "varlen") else _of_decode(p)


def _of_decode(p: Any) -> list[Memory]:
    s, cache, paging, rotary = p.shape, p.cache, p.cache.paging, p.cache.rotary
    slots = paging.page_size if paging.block_table else s.seqlen_k

    def rows(name: str, v: Any, *sizes: int) -> Memory:
        return Memory(name, v.data, 2, sizes, (v.batch, v.row, v.head, v.comp, 1))

    def numbers(name: str, v: Any, comps: int) -> Memory:
        sizes, strides = (s.batch, s.seqlen_q, s.nheads, comps), (v.batch, v.row, v.head, v.comp)
        return Memory(name, v.data, 4, sizes, strides)

    def vector(name: str, address: int, size: int, itemsize: int = 4) -> Memory:
        return Memory(name, address, itemsize, (size,), (1,))

    old, new = (cache.blocks, slots, s.nheads_k), (s.batch, cache.seqlen_new, s.nheads_k)
    table = (s.batch, s.seqlen_k // slots if slots else 0)
    found = [
        rows("q", p.q, s.batch, s.seqlen_q, s.nheads, 2, s.headdim),
        rows("k_new", p.k_new, *new, s.k_components, s.headdim),
        rows("v_new", p.v_new, *new, 1, s.headdim_v),
        replace(rows("k_cache", p.k_cache, *old, s.k_components, s.headdim), changed=True),
        replace(rows("v_cache", p.v_cache, *old, 1, s.headdim_v), changed=True),
        numbers("lam", p.lam, 1),
        vector("norm_weight", p.norm.weight, s.headdim_v),
        vector("cache_seqlens", cache.seqlens, s.batch),
        vector("cache_batch_idx", cache.batch_idx, s.batch),
        vector("cache_leftpad", cache.leftpad, s.batch),
        Memory("block_table", paging.block_table, 4, table, (paging.stride, 1)),
        vector("rotary_cos", rotary.cos, rotary.seqlen * rotary.dim // 2, 2),
        vector("rotary_sin", rotary.sin, rotary.seqlen * rotary.dim // 2, 2),
        replace(rows("out", p.out, s.batch, s.seqlen_q, s.nheads, 1, s.headdim_v), written=True),
        replace(numbers("lse", p.lse, 2), written=True),
    ]
    return [memory for memory in found if memory.exists()]


def _of_training(p: Any) -> list[Memory]:
    """Forward or backward; of outputs the rows with an owner."""
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
        of_q, of_k, others = [rows("out", p.out, total_q, s.nheads, 1, s.headdim_v), *saved], [], []
    else:
        dout = rows("dout", p.dout, total_q, s.nheads, 1, s.headdim_v)
        inputs += [*saved, dout, numbers("dlse", p.dlse, 2)]
        of_q = [rows("dq", p.dq, total_q, s.nheads, 2, s.headdim), numbers("dlam", p.dlam, 1)]
        of_k = [
            rows("dk", p.dk, total_k, s.nheads_k, s.k_components, s.headdim),
            rows("dv", p.dv, total_k, s.nheads_k, 1, s.headdim_v),
        ]
        others = [vector("dnorm_weight", p.dnorm_weight, s.headdim_v)]
    outputs = [
        *_owned(of_q, p, p.varlen.cu_seqlens_q, p.varlen.total_q, s.seqlen_q),
        *_owned(of_k, p, p.varlen.cu_seqlens_k, p.varlen.total_k, s.seqlen_k),
        *others,
    ]
    outputs = [replace(memory, written=True) for memory in outputs]
    return [memory for memory in inputs + outputs if memory.exists()]


def _owned(
    memories: list[Memory], p: Any, cu_seqlens: int, total: int, longest: int
) -> Iterator[Memory]:
    """The rows of packed outputs that belong to a sequence: all, if cu_seqlens are right."""
    memories = [memory for memory in memories if memory.exists()]
    if cu_seqlens == 0:
        yield from memories
        return
    ends = np.array((ctypes.c_int32 * (p.shape.batch + 1)).from_address(cu_seqlens))
    owned = np.zeros(total + 2, np.int8)
    for first, last in zip(ends[:-1].clip(0, total), ends[1:].clip(0, total), strict=True):
        owned[1 + first : 1 + min(last, first + longest)] = 1
    for first, last in np.flatnonzero(np.diff(owned)).reshape(-1, 2).tolist():
        for memory in memories:
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
            if any(memory.written for memory in group) and region.undefined_bytes:
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
    writable = any(memory.written or memory.changed for memory in group)
    region = device.register(first, end - first, name, writable=writable)
    for memory in group:
        sizes, strides, piece = memory.blocks()
        fresh = memory.written and end - first <= FOLLOWED
        region.allow(memory.address - first, sizes, strides, piece, defined=not fresh)
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
