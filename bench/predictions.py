"""Predicted speeds of training, from counted figures (docs/counts.csv). No GPU has run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from clocks import A100, H100, H100_WGMMA, Device, Work
from counting.record import Counts
from marks import GOALS
from neighbours import FA2, FA3, RECIPES


@dataclass(frozen=True)
class Training:
    """Causal, V twice as wide as Q."""

    device: str
    direction: str  # fwd, bwd, fwd + bwd
    d: int
    seqlen: int
    tflops: float  # of the fused formula's flop over visible pairs
    times_fa2: float  # how many times longer four calls of FlashAttention-2 take
    times_fa3: float | None  # the same of FlashAttention-3, which has kernels for an H100 only
    goal: float | None


# By direction, the kernels that run, ours and FlashAttention's.
OURS = {"fwd": ["fwd"], "bwd": ["bwd"], "fwd + bwd": ["fwd saving", "bwd"]}
THEIRS = {"fwd": ["fwd"], "bwd": ["bwd"], "fwd + bwd": ["fwd", "bwd"]}


def work_of(counts: list[Counts], kernel: str, d: int) -> Work:
    """What a pair costs our kernel, and a row the kernels around it."""
    mine = [c for c in counts if (c.headdim, c.headdim_v) == (d, 2 * d) and "full" in c.problem]
    (main,) = (c.figures for c in mine if c.kernel == kernel)
    # Where pairs of warps leave out what their own rows do not see, they wait at the next barrier
    # for the others, and two pairs share two of the four sub-cores: rows count by half a CTA.
    rows = max(main["tile_rows"], main.get("block_rows", 0) / 2)
    beside = ("bwd prepare", "bwd round")  # like FlashAttention's without a norm
    around = [c.figures["bytes_per_row"] for c in mine if c.kernel in beside]
    return Work(
        mma_flop=main["flop_per_pair"],
        shared_bytes=main["shared_bytes_per_pair"],
        exp2=main["exp2_per_pair"],
        fma=main["fma_per_pair"],
        alu=main["alu_per_pair"],
        tile=(int(rows), int(main["tile_keys"])),
        l2_bytes=main["l2_bytes_per_pair"],
        row_bytes=sum(around) if kernel == "bwd" else 0,
        backward=kernel == "bwd",
    )


def training(counts: list[Counts], device: Device, seqlens: list[int]) -> Iterator[Training]:
    for direction, goals in GOALS.items():
        for d, goal in goals.items():
            ours = [work_of(counts, kernel, d) for kernel in OURS[direction]]
            fa2 = [FA2[kernel, d].work for kernel in THEIRS[direction]]
            flop = sum(RECIPES["ours"][kernel] for kernel in THEIRS[direction]) * d
            for seqlen in seqlens:
                mine = sum(work.causal_seconds(device, seqlen) for work in ours)
                theirs = 4 * sum(work.causal_seconds(device, seqlen) for work in fa2)
                times_fa3 = None
                if device is H100 and direction == "fwd":
                    fa3 = FA3["fwd", d].work.causal_seconds(H100_WGMMA, seqlen)
                    times_fa3 = 4 * fa3 / mine
                yield Training(
                    device=device.name,
                    direction=direction,
                    d=d,
                    seqlen=seqlen,
                    tflops=flop * seqlen * (seqlen + 1) / 2 / mine / 1e12,
                    times_fa2=theirs / mine,
                    times_fa3=times_fa3,
                    goal=goal if device is A100 else None,
                )
