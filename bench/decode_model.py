"""Predicted time of a step of decoding, (d, dv) = (64, 128): memory, and what nothing can hide.

    seconds = bytes / bandwidth + fixed

The bytes are counted. Nothing on the chip comes near memory's time (docs/kernels_decode.md), but
before the first bytes come and after the last ones a warp's own instructions stand one behind the
other, and reads that wait for each other. Those are counted too; how long each takes is not known,
so the fixed part is a range.
"""

from __future__ import annotations

from dataclasses import dataclass

from clocks import A100, H100, Device
from counting.record import Counts

# A warp's chain until the first bytes, for the last values with the merge, and, where the keys are
# split, of the combine kernel: the shortest, at (64, 128), and the longest, at (128, 256).
CHAIN, COMBINE = (343 + 440, 357 + 640), (793, 765)
CLOCKS = (2, 4)  # an instruction that waits for the one before it takes
STORES = 200  # clocks
HBM_READS, L2_READS = (
    3,
    2,
)  # that wait for each other: before the first bytes, in the combine kernel
LATENCY = {A100: (466, 262), H100: (690, 281)}  # clocks: memory, L2
LAUNCH_GAP = 1e-6  # seconds between two launches


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


def fixed(device: Device, split: bool) -> tuple[float, float]:
    """Seconds, best and worst case."""
    hbm, l2 = LATENCY[device]
    reads = HBM_READS * hbm + (L2_READS * l2 if split else 0) + STORES
    chains = (
        chain + (combine if split else 0) for chain, combine in zip(CHAIN, COMBINE, strict=True)
    )
    best, worst = (
        (chain * clocks + reads) / (device.ghz * 1e9) + (LAUNCH_GAP if split else 0)
        for chain, clocks in zip(chains, CLOCKS, strict=True)
    )
    return best, worst


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
    best, worst = (moved + seconds for seconds in fixed(device, split))
    shares = [cache_bytes / device.bandwidth / seconds for seconds in (worst, best)]
    return Decode(device.name, cache_bytes, split, (best, worst), (shares[0], shares[1]))
