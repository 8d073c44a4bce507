"""Hopper's forward: its main loop counted, and how long it should take, in docs/kernels_sm90.md.

    python bench/counting/hopper.py

The machine code gives instructions, the tiles give flop and bytes (tests/test_sim_hopper.py holds
the simulator's counts to them), and the model of docs/predictions.md makes time of both.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tools")]
import build_cuda  # noqa: E402
from counting import sass  # noqa: E402
from counting.figures import read  # noqa: E402
from counting.model import FA3, H100, H100_WGMMA, Work, work_of  # noqa: E402
from page import rewrite, table  # noqa: E402

PAGE = ROOT / "docs" / "kernels_sm90.md"
SHAPES = [(64, 64), (64, 128), (128, 128), (128, 256)]
SEQLENS = [2048, 4096, 16384]
ROWS, WARPGROUP_ROWS, WARP_ROWS = 128, 64, 16
MAPS = 2


@dataclass(frozen=True)
class Forward:
    """The bf16 kernel for these head dims."""

    d: int
    dv: int

    @property
    def keys(self) -> int:
        """Of a tile."""
        return 128 if self.dv <= 128 else 64

    @property
    def loop(self) -> sass.Loop:
        source = build_cuda.SOURCES / "sm90" / "instances" / f"fwd_d{self.d}.cu"
        loops = sass.main_loops(build_cuda.object_of(source))
        name = f"bfloat16Li{self.d}ELi{self.dv}E"
        (found,) = (loop for kernel, loop in loops.items() if name in kernel)
        return found

    @property
    def others(self) -> int:
        return self.loop.opcodes.total() - self.loop.hmma

    def work(self) -> Work:
        """Of a pair, both maps together. Q, K and V are operands in shared memory, P is not."""
        d, dv = self.d, self.dv
        operands = 2 * d / self.keys + 2 * (d + dv) / WARPGROUP_ROWS
        threads = MAPS * 32 / (WARP_ROWS * self.keys)  # a pair's share of a warp's instruction
        return Work(
            mma_flop=MAPS * 2 * (d + dv),
            shared_bytes=MAPS * operands,
            exp2=self.loop.exp2 * threads,
            fma=self.loop.fma * threads,
            alu=self.loop.alu * threads,
            tile=(ROWS, self.keys),
            l2_bytes=MAPS * 2 * (d + dv) / ROWS,
        )


def tflops(shape: Forward, seqlen: int) -> float:
    """Causal, of the formula's flop over visible pairs."""
    flop = MAPS * 2 * (shape.d + shape.dv) * seqlen * (seqlen + 1) / 2
    return flop / shape.work().causal_seconds(H100_WGMMA, seqlen) / 1e12


def times(shape: Forward, seqlen: int, seconds: float) -> str:
    return f"{seconds / shape.work().causal_seconds(H100_WGMMA, seqlen):.2f}"


def predictions() -> list[list[str]]:
    counts = read(ROOT / "docs" / "counts.csv")
    lines = []
    for shape in (Forward(d, dv) for d, dv in SHAPES):
        line = [f"({shape.d}, {shape.dv})", *(f"{tflops(shape, s):.0f}" for s in SEQLENS), "", ""]
        if shape.dv == 2 * shape.d:
            long = SEQLENS[-1]
            older = work_of(counts, "fwd", shape.d).causal_seconds(H100, long)
            four_calls = 4 * FA3["fwd", shape.d].work.causal_seconds(H100_WGMMA, long)
            line[-2:] = times(shape, long, older), times(shape, long, four_calls)
        lines.append(line)
    return lines


def counted() -> list[list[str]]:
    found = []
    for shape in (Forward(d, dv) for d, dv in SHAPES):
        products = str(shape.loop.hmma)
        found.append([f"({shape.d}, {shape.dv})", str(shape.keys), products, str(shape.others)])
    return found


def main() -> None:
    header = ["(d, dv)", "keys a step", "HGMMA", "others"]
    rewrite(PAGE, "loop", table(header, counted()))
    header = ["(d, dv)", *(f"S = {s // 1024}k" for s in SEQLENS), "× sm_80's kernel, 16k",
              "× four FA3 calls, 16k"]  # fmt: skip
    rewrite(PAGE, "speed", table(header, predictions()))


if __name__ == "__main__":
    main()
