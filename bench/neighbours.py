"""What the neighbours do and reach: recipes of several calls, and FlashAttention's own kernels."""

from __future__ import annotations

from dataclasses import dataclass

from clocks import A100, H100_WGMMA, Device, Work

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


# Wavefronts a mma, without cp.async's writes: at hdim 64 as our simulator counts them in FA2's own
# kernels (S = 2048 and 1024), at hdim 128 as its tiles give them. An mma has 4096 flop, a wavefront
# 128 bytes. Forward: FFMA, FMNMX, FADD and half a conversion an element; with all that we count of
# ours (4.2 in its hdim 64 loop: it rescales O in every step) the model would be 3 % below what was
# published instead of at it, so ours get what is doubtful charged and FA2 does not.
def _fa2_forward(d: int, wavefronts: float, keys: int) -> Work:
    return Work(4 * d, wavefronts * 4 * d / 32, 1, 3.5, (128, keys))


# FFMA, FADD, FMUL, two halves of a conversion, and the mask of every element (ISETP, FSEL). Before
# and after pass over memory: D = <dO, O>, clearing dQ, and rounding it.
def _fa2_backward(d: int, wavefronts: float, rows: int) -> Work:
    shared_bytes, row_bytes = wavefronts * 10 * d / 32, 14 * d + 8
    return Work(10 * d, shared_bytes, 1, 6, (rows, 128), row_bytes=row_bytes, backward=True)


# A warpgroup has 64 rows: wgmma reads Q, K and V from shared memory; P is in registers.
def _fa3_forward(d: int, keys: int) -> Work:
    return Work(4 * d, 2 * d / keys + 4 * d / 64, 1, 3.5, (128, keys))


FA2 = {
    ("fwd", 64): Neighbour("FA2 forward", 64, A100, 192, _fa2_forward(64, 1.15, 128)),
    ("fwd", 128): Neighbour("FA2 forward", 128, A100, 223, _fa2_forward(128, 1.28, 64)),
    ("bwd", 64): Neighbour("FA2 backward", 64, A100, 170, _fa2_backward(64, 2.05, 128)),
    ("bwd", 128): Neighbour("FA2 backward", 128, A100, 196, _fa2_backward(128, 1.95, 64)),
}
FA3 = {
    ("fwd", 64): Neighbour("FA3 forward", 64, H100_WGMMA, 497, _fa3_forward(64, 128)),
    ("fwd", 128): Neighbour("FA3 forward", 128, H100_WGMMA, 648, _fa3_forward(128, 176)),
}
