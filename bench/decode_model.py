"""Predicted time of a step of decoding, (d, dv) = (64, 128): memory, and what nothing can hide.

    seconds = bytes / bandwidth + fixed

The bytes are counted. Nothing on the chip comes near memory's time (docs/kernels_decode.md), but
before the first bytes come and after the last ones a warp's own instructions stand one behind the
other, and reads that wait for each other. Those are counted too, in machine code; how long each
takes is not known, so the fixed part is a range.
"""

from __future__ import annotations

from dataclasses import dataclass

from clocks import A100, H100, Device
from counting.record import Counts

LATENCY = {A100: (466, 262), H100: (690, 281)}  # clocks of a read from memory, from L2
MEMORY, L2 = 0, 1
LAUNCH_GAP = 1e-6  # seconds between two launches


@dataclass(frozen=True)
class Chain:
    """What a warp does alone."""

    instructions: int  # those that no read hides
    reads: tuple[tuple[int, int], ...] = ()  # from where, and the instructions that it hides

    def clocks(self, device: Device, each: int) -> int:
        """If an instruction that waits for the one before it takes `each`."""
        reads = (max(LATENCY[device][kind], each * hidden) for kind, hidden in self.reads)
        return each * self.instructions + sum(reads)


@dataclass(frozen=True)
class Chains:
    clocks_each: int
    begin: Chain  # until the first bytes are there
    end_split: Chain  # last values, merge of the groups, stores
    end_whole: Chain
    combine: Chain  # 16 splits


STORES = 200  # clocks
TABLES = ((MEMORY, 30), (MEMORY, 62), (MEMORY, 0))  # lengths, page, keys
SPLITS = ((L2, 33), (L2, 85))  # how many there are; what they have
BEST = Chains(2, Chain(168, TABLES), Chain(421), Chain(514), Chain(405, SPLITS))
# (d, dv) = (128, 256), with the norm
WORST = Chains(4, Chain(168, TABLES), Chain(643), Chain(804), Chain(455, SPLITS))


@dataclass(frozen=True)
class Decode:
    """One step: its best and its worst case."""

    device: str
    cache_bytes: int
    split: bool  # few sequences; many need no splits and no combine kernel
    seconds: tuple[float, float]
    of_bandwidth: tuple[float, float]  # worst, best

    @property
    def usual(self) -> float:
        """The middle, by which a goal is met or missed."""
        return sum(self.of_bandwidth) / 2


def fixed(device: Device, split: bool, chains: Chains) -> float:
    """Seconds."""
    parts = (
        [chains.begin, chains.end_split, chains.combine]
        if split
        else [chains.begin, chains.end_whole]
    )
    clocks = STORES + sum(part.clocks(device, chains.clocks_each) for part in parts)
    return clocks / (device.ghz * 1e9) + (LAUNCH_GAP if split else 0)


def decode(counts: list[Counts], device: Device, cache_bytes: int, split: bool) -> Decode:
    """Four query heads a KV head, splits of 1,024 keys or none."""
    (c,) = (
        c.figures
        for c in counts
        if (c.kernel, c.headdim, c.headdim_v) == ("decode", 64, 128)
        and "4 heads" in c.problem
        and (c.figures["workspace_ratio"] > 0) == split
    )
    moved = cache_bytes * (c["distinct_ratio"] + c["workspace_ratio"]) / device.bandwidth
    best, worst = (moved + fixed(device, split, chains) for chains in (BEST, WORST))
    shares = [cache_bytes / device.bandwidth / seconds for seconds in (worst, best)]
    return Decode(device.name, cache_bytes, split, (best, worst), (shares[0], shares[1]))
