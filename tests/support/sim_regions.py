"""Holds a launch to its memory: the device knows the regions, and each output is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .sim_memory import Memory

# Whether each byte has been written is not followed in tensors that are only sparsely there.
FOLLOWED = 1 << 28


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
        strides = [memory.itemsize * stride for stride in memory.strides]
        fresh = memory.written and end - first <= FOLLOWED
        offset = memory.address - first
        region.allow(offset, memory.sizes, strides, memory.itemsize, defined=not fresh)
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
        f"{tuple(memory.sizes)}"
    )
