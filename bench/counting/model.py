"""A time model of attention kernels, from what they do: predictions, not measurements.

A pair of a query and a key costs each unit of an SM some clocks: the tensor cores, shared memory,
exp2, the FMA pipe and the ALU pipe. They overlap, but not perfectly:

    clocks = (sum over units of clocks^p)^(1/p), and no less than its bytes from L2 take

p and the backward's factors were fitted to FlashAttention's published speeds; the differences that
remain are the model's error (docs/predictions.md has it). What our kernels do is counted
(docs/counts.csv).

A step of decoding, (d, dv) = (64, 128), takes memory's time, and what nothing can hide:

    seconds = bytes / bandwidth + fixed

The bytes are counted. Nothing on the chip comes near memory's time (docs/decode_speed.md), but
before the first bytes arrive and after the last ones, a warp's own instructions run one after the
other, and so do reads that wait for each other. Those are counted too, in machine code; how long
each takes is not known, so the fixed part is a range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .figures import GOALS, Counts

MMA_FLOP = 16 * 8 * 16 * 2  # of one instruction
OVERLAP = 1.55  # p: 1 if units waited for each other, infinite if they never did


@dataclass(frozen=True)
class Device:
    """Rates per SM and clock."""

    name: str
    sms: int
    ghz: float
    tensor_flop: float  # bf16
    exp2: float  # this and the next two per thread
    fma: float
    alu: float
    shared_bytes: float
    l2_bytes: float  # sustained; assumed
    hbm_bytes: float
    backward: float  # the factor on a backward's clocks

    @property
    def clock_rate(self) -> float:
        """Clocks per second, of all SMs."""
        return self.sms * self.ghz * 1e9

    @property
    def bandwidth(self) -> float:
        """Bytes of memory per second."""
        return self.hbm_bytes * self.clock_rate


A100 = Device("A100", 108, 1.41, 2048, 16, 64, 64, 128, 30, 13.4, 1.03)
# mma.sync, which our kernels and FlashAttention-2's use, reaches about 62 % of what wgmma does.
H100 = Device("H100", 132, 1.83, 4096 * 0.62, 16, 128, 64, 128, 27.5, 13.9, 1.15)
H100_WGMMA = Device("H100", 132, 1.83, 4096, 16, 128, 64, 128, 27.5, 13.9, 1.15)
DEVICES = (A100, H100)
LATENCY = {A100: (466, 262), H100: (690, 281)}  # clocks of a read from memory, from L2
MEMORY, L2 = 0, 1
LAUNCH_GAP = 1e-6  # seconds between two launches
# Where the second was launched before, the first one's end releases it. That is charged as a read
# from L2; how long it takes has not been published.
RELEASE = (L2, 0)


def tiled_pairs(seqlen: int, rows: int, keys: int, causal: bool = True) -> int:
    """Pairs in the tiles of rows x keys that hold a visible pair; as many queries as keys."""
    total = 0
    for first in range(0, seqlen, rows):
        seen = min(first + rows, seqlen) if causal else seqlen
        total += rows * -(-seen // keys) * keys
    return total


@dataclass(frozen=True)
class Work:
    """What a visible pair costs, and what a row costs in addition."""

    mma_flop: float
    shared_bytes: float
    exp2: float  # instructions per thread, as in the next two
    fma: float
    alu: float
    tile: tuple[int, int]  # rows, keys
    l2_bytes: float = 0
    row_bytes: float = 0  # of memory, by kernels before and after
    backward: bool = False

    def clocks(self, device: Device) -> float:
        """A pair's time on one SM."""
        units = (
            self.mma_flop / device.tensor_flop,
            self.shared_bytes / device.shared_bytes,
            self.exp2 / device.exp2,
            self.fma / device.fma,
            self.alu / device.alu,
        )
        together = sum(u**OVERLAP for u in units) ** (1 / OVERLAP)
        together *= device.backward if self.backward else 1
        return max(together, self.l2_bytes / device.l2_bytes)

    def causal_seconds(self, device: Device, seqlen: int) -> float:
        """Of one head, its share of a device that is busy everywhere."""
        pairs = tiled_pairs(seqlen, *self.tile) * self.clocks(device)
        rows = seqlen * self.row_bytes / device.hbm_bytes
        return (pairs + rows) / device.clock_rate


# Flop per visible pair, and bytes per cached token and KV head, in units of d (bf16); V is 2d wide.
RECIPES = {
    "ours": {"fwd": 12, "bwd": 20, "decode": 8},
    "two calls, V = 2d": {"fwd": 12, "bwd": 28, "decode": 12},
    "four calls, V = d": {"fwd": 16, "bwd": 40, "decode": 16},
}


@dataclass(frozen=True)
class Neighbour:
    """One attention kernel with V as wide as Q, and its best published speed."""

    name: str
    d: int
    device: Device
    published: float  # TFLOP/s
    work: Work

    @property
    def modelled(self) -> float:
        """TFLOP/s of long sequences."""
        return self.work.mma_flop / self.work.clocks(self.device) * self.device.clock_rate / 1e12

    @property
    def error(self) -> float:
        return self.modelled / self.published - 1


@dataclass(frozen=True)
class MainLoop:
    """What a warp does in a step: machine code (sass.py), and wavefronts of its operands."""

    hmma: int
    exp2: int
    fma: int
    alu: int
    wavefronts_per_mma: float  # without cp.async's writes

    def work(self, mma_flop: float, tile: tuple[int, int]) -> Work:
        """Of a pair that takes so much flop."""
        mma = mma_flop / MMA_FLOP
        per_pair = 32 * mma / self.hmma
        return Work(
            mma_flop=mma_flop,
            shared_bytes=128 * mma * self.wavefronts_per_mma,
            exp2=self.exp2 * per_pair,
            fma=self.fma * per_pair,
            alu=self.alu * per_pair,
            tile=tile,
        )


# FlashAttention-2 2.8.3, bf16, causal, no optional features, as nvcc 13.0 compiles it for sm_80.
# Wavefronts are counted in our simulator at S = 2048 forward and 1024 backward.
def _fa2_forward(d: int, published: float, keys: int, loop: MainLoop) -> Neighbour:
    return Neighbour("FA2 forward", d, A100, published, loop.work(4 * d, (128, keys)))


# Before and after it, kernels pass over memory: D = <dO, O>, clearing dQ, and rounding it.
def _fa2_backward(d: int, published: float, rows: int, loop: MainLoop) -> Neighbour:
    work = replace(loop.work(10 * d, (rows, 128)), row_bytes=14 * d + 8, backward=True)
    return Neighbour("FA2 backward", d, A100, published, work)


# Not compiled here. A warpgroup has 64 rows: wgmma reads Q, K and V from shared memory; P is in
# registers. FFMA, FADD and a rescale of O; FMNMX and half a conversion.
def _fa3_forward(d: int, published: float, keys: int) -> Neighbour:
    work = Work(4 * d, 2 * d / keys + 4 * d / 64, 1, 2 + d / keys, 1.5, (128, keys))
    return Neighbour("FA3 forward", d, H100_WGMMA, published, work)


FA2 = {
    ("fwd", 64): _fa2_forward(64, 192, 128, MainLoop(256, 132, 336, 254, 1.154)),
    ("fwd", 128): _fa2_forward(128, 223, 64, MainLoop(256, 68, 272, 172, 1.279)),
    ("bwd", 64): _fa2_backward(64, 170, 128, MainLoop(320, 64, 280, 322, 2.044)),
    ("bwd", 128): _fa2_backward(128, 196, 64, MainLoop(320, 32, 156, 208, 1.944)),
}
FA3 = {("fwd", 64): _fa3_forward(64, 497, 128), ("fwd", 128): _fa3_forward(128, 648, 176)}


@dataclass(frozen=True)
class Prediction:
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


def work_of(counts: list[Counts], kernel: str, d: int, dv: int | None = None) -> Work:
    """What a pair costs our kernel, and what a row costs the kernels around it."""
    shape = (d, dv or 2 * d)
    mine = [c for c in counts if (c.headdim, c.headdim_v) == shape and "full" in c.problem]
    (main,) = (c.figures for c in mine if c.kernel == kernel)
    # Where pairs of warps leave out what their own rows do not see, they wait at the next barrier
    # for the others, and two pairs share two of the four sub-cores: rows count by half a CTA.
    rows = max(main["tile_rows"], main.get("block_rows", 0) / 2)
    small = ("bwd prepare", "bwd round")  # as FlashAttention has, which has no norm
    around = [c.figures["bytes_per_row"] for c in mine if c.kernel in small]
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


def predict(counts: list[Counts], device: Device, seqlens: list[int]) -> Iterator[Prediction]:
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
                yield Prediction(
                    device=device.name,
                    direction=direction,
                    d=d,
                    seqlen=seqlen,
                    tflops=flop * seqlen * (seqlen + 1) / 2 / mine / 1e12,
                    times_fa2=theirs / mine,
                    times_fa3=times_fa3,
                    goal=goal if device is A100 else None,
                )


@dataclass(frozen=True)
class Chain:
    """What a warp does alone."""

    instructions: int  # those that no read hides
    reads: tuple[tuple[int, int], ...] = ()  # from where, and the instructions that it hides

    def clocks(self, device: Device, each: int) -> int:
        """Its time, if an instruction that waits for the one before it takes `each`."""
        reads = (max(LATENCY[device][kind], each * hidden) for kind, hidden in self.reads)
        return each * self.instructions + sum(reads)


@dataclass(frozen=True)
class Chains:
    clocks_each: int
    begin: Chain  # until the first bytes are there
    end_split: Chain  # last values, merge of the groups, stores
    end_whole: Chain
    combine: Chain  # 16 splits
    released: Chain  # combine where it was launched before: what comes after its wait


STORES = 200  # clocks
TABLES = ((MEMORY, 30), (MEMORY, 62), (MEMORY, 0))  # lengths, page, keys
SPLITS = ((L2, 33), (L2, 85))  # how many there are; what they have
RELEASED = (RELEASE, (L2, 85))  # it knows how many splits there are
BEST = Chains(
    2, Chain(168, TABLES), Chain(421), Chain(514), Chain(405, SPLITS), Chain(342, RELEASED)
)
# (d, dv) = (128, 256), with the norm
WORST = Chains(
    4, Chain(168, TABLES), Chain(643), Chain(804), Chain(455, SPLITS), Chain(392, RELEASED)
)


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
    early = device is H100  # dependent launches
    combine = chains.released if early else chains.combine
    parts = [chains.begin, chains.end_split, combine] if split else [chains.begin, chains.end_whole]
    clocks = STORES + sum(part.clocks(device, chains.clocks_each) for part in parts)
    return clocks / (device.ghz * 1e9) + (LAUNCH_GAP if split and not early else 0)


def decode(counts: list[Counts], device: Device, cache_bytes: int, split: bool) -> Decode:
    """Four query heads per KV head, splits of 1,024 keys or none."""
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
