"""What the kernels are measured against.

Rates of the devices, the neighbours' published speeds, and marks that come from the neighbours' own
compiled kernels (FlashAttention-2, flex_head_fa; nvcc 13.0, sm_80).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Rates per SM and clock."""

    name: str
    sms: int
    ghz: float
    tensor_flop: float  # bf16, by mma.sync
    exp2: float
    fp32: float  # fp32 and integer instructions, by thread
    shared_bytes: float
    hbm_bytes: float

    @property
    def peak_tflops(self) -> float:
        return self.sms * self.ghz * self.tensor_flop / 1e3


A100 = Device("A100", 108, 1.41, 2048, 16, 64, 128, 13.4)
# mma.sync reaches about 62 % of what wgmma does there.
H100 = Device("H100", 132, 1.83, 4096 * 0.62, 16, 128, 128, 13.9)
DEVICES = (A100, H100)

# FlashAttention-2 on an A100, TFLOP/s, causal or not: its README's plots (d = 64, 128).
FA2_A100 = {("fwd", 64): 192.0, ("fwd", 128): 223.0}


@dataclass(frozen=True)
class Mark:
    """The most that a kernel's main loop may have."""

    others_per_hmma: float
    wavefronts_per_mma: float
    flop_ratio: float


MARKS = {
    ("fwd", 64, 128): Mark(2.5, 1.2, 1.02),
    ("fwd", 128, 256): Mark(2.2, 1.7, 1.02),
}

# Forward FLOP a visible pair in units of d, V twice as wide as Q: ours and the peers' recipes.
FORWARD_FLOP = {"ours": 12, "two calls, V = 2d": 12, "four calls, V = d": 16}
