"""A time model of attention kernels, from what they do: predictions, not measurements.

A pair of a query and a key costs each unit of an SM some clocks: the tensor cores, shared memory,
exp2, the FMA pipe and the ALU pipe. They overlap, but not perfectly:

    clocks = (sum over units of clocks^p)^(1/p), and no less than its bytes from L2 take

p was fitted to FlashAttention's published speeds, and so were the backward's factors; what is left
of them is the model's error (bench/model.py prints it).
"""

from __future__ import annotations

from dataclasses import dataclass

from tiling import tiled_pairs

OVERLAP = 1.55  # p: 1 if units waited for each other, infinite if they never did


@dataclass(frozen=True)
class Device:
    """Rates per SM and clock."""

    name: str
    sms: int
    ghz: float
    tensor_flop: float  # bf16
    exp2: float  # this and the next two by thread
    fma: float
    alu: float
    shared_bytes: float
    l2_bytes: float  # sustained; assumed
    hbm_bytes: float
    backward: float  # a backward takes so many times its clocks

    @property
    def clock_rate(self) -> float:
        """Clocks of all SMs, a second."""
        return self.sms * self.ghz * 1e9

    @property
    def bandwidth(self) -> float:
        """Bytes of memory a second."""
        return self.hbm_bytes * self.clock_rate


A100 = Device("A100", 108, 1.41, 2048, 16, 64, 64, 128, 30, 13.4, 1.03)
# mma.sync, which our kernels and FlashAttention-2's use, reaches about 62 % of what wgmma does.
H100 = Device("H100", 132, 1.83, 4096 * 0.62, 16, 128, 64, 128, 27.5, 13.9, 1.15)
H100_WGMMA = Device("H100", 132, 1.83, 4096, 16, 128, 64, 128, 27.5, 13.9, 1.15)
DEVICES = (A100, H100)


@dataclass(frozen=True)
class Work:
    """What a visible pair costs, and what a row costs beside its pairs."""

    mma_flop: float
    shared_bytes: float
    exp2: float  # instructions by thread, and so the next two
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
