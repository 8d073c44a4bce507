"""A time model of the kernels, fed with what they do: predictions, not measurements.

    python bench/model.py

A pair of a query and a key costs each unit of an SM some clocks: the tensor cores, shared memory,
exp2 and the fp32/integer pipes. They overlap, but not perfectly:

    clocks = (sum over units of clocks^1.5)^(2/3)

The model reproduces FlashAttention-2's published speeds on an A100 within 2 % forward and 9 %
backward; the table begins with that check. What our kernels do comes from the simulator and from
ptxas' machine code (bench/counts.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

from marks import DEVICES, FA2_A100, FORWARD_FLOP, A100, Device


@dataclass(frozen=True)
class Work:
    """What a visible pair costs."""

    mma_flop: float
    shared_bytes: float
    exp2: float
    alu: float  # fp32 and integer instructions, by thread


# FlashAttention-2's hdim 64 and 128 forward, counted on its own compiled kernels: wavefronts an mma
# of 4096 flop 1.22 and 1.47; FFMA, FMNMX, FADD and half a conversion an element.
FA2_FORWARD = {
    d: Work(4 * d, 128 * wavefronts * 4 * d / 4096, 1, 3.5)
    for d, wavefronts in ((64, 1.22), (128, 1.47))
}


def clocks(work: Work, device: Device) -> float:
    """A pair's time on one SM."""
    units = (
        work.mma_flop / device.tensor_flop,
        work.shared_bytes / device.shared_bytes,
        work.exp2 / device.exp2,
        work.alu / device.fp32,
    )
    return sum(u**1.5 for u in units) ** (2 / 3)


def tflops(work: Work, flop: float, device: Device) -> float:
    """Useful flop a second of a pair that counts for `flop`."""
    return flop / clocks(work, device) * device.sms * device.ghz / 1e3


def waste(seqlen: int, rows: int, keys: int, ctas_at_once: int, heads: int) -> float:
    """Time over that of the visible pairs alone: what causal tiles round up, and the last wave."""
    blocks = -(-seqlen // rows)
    steps = [-(-min((block + 1) * rows, seqlen) // keys) for block in range(blocks)]
    work = sum(steps) * rows * keys
    visible = seqlen * (seqlen + 1) / 2
    waves = max(1.0, work * heads / ctas_at_once / (max(steps) * rows * keys))
    return work / visible * (1 + 0.5 / waves)


def check_against_fa2() -> Iterable[tuple[str, float, float]]:
    for d, work in FA2_FORWARD.items():
        yield f"FA2 forward d={d}, A100", tflops(work, 4 * d, A100), FA2_A100["fwd", d]
