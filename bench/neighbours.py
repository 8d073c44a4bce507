"""What the neighbours do and reach: recipes of several calls, and FlashAttention's own kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

from clocks import A100, H100_WGMMA, Device, Work
from tiling import MMA_FLOP

# Flop a visible pair, and bytes a cached token and KV head, in units of d (bf16); V is 2d wide.
RECIPES = {
    "ours": {"fwd": 12, "bwd": 20, "decode": 8},
    "two calls, V = 2d": {"fwd": 12, "bwd": 28, "decode": 12},
    "four calls, V = d": {"fwd": 16, "bwd": 40, "decode": 16},
}


@dataclass(frozen=True)
class Neighbour:
    """One attention kernel with V as wide as Q, and the best speed that was published of it."""

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
    """What a warp does in a step: machine code (bench/sass.py), and wavefronts of its operands."""

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


# Before and after it pass over memory: D = <dO, O>, clearing dQ, and rounding it.
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
