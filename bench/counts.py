"""What the CUDA kernels do, counted: no GPU is needed, and none would count better.

    python bench/counts.py [--csv docs/counts.csv]

Three sources: ptxas' report (registers, spills), the machine code of the main loop (bench/sass.py)
and a run in the simulator (tests/ptxsim): tensor core flop, shared-memory wavefronts, exp2s, bytes.
Beside them stand the marks (bench/marks.py).
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from marks import MARKS
from sass import main_loops
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import simulator  # noqa: E402

import build_cuda  # noqa: E402
from diffattn_cuda import diff_flash_attn_func  # noqa: E402

SHAPES = [(32, 64), (64, 128), (96, 192), (128, 256), (32, 32), (64, 64), (96, 96), (128, 128)]
MMA_FLOP = 16 * 8 * 16 * 2
# What an element of P costs the fp32 pipe; addresses and loop control are counted with the others.
ARITHMETIC = ("FFMA", "FADD", "FMUL", "FMNMX", "F2FP", "HADD2")


@dataclass(frozen=True)
class Counts:
    """One kernel on one problem; per pair means per pair of query and key that a tile holds."""

    kernel: str
    headdim: int
    headdim_v: int
    seqlen: int
    causal: bool
    registers: int
    spilled_bytes: int
    hmma: int  # in the main loop
    others_per_hmma: float
    flop_ratio: float  # of the tensor cores, to the formula's
    wavefronts_per_mma: float  # of shared memory, cp.async's writes not counted
    wavefronts_ratio: float  # to those without bank conflicts
    flop_per_pair: float
    shared_bytes_per_pair: float
    exp2_per_pair: float
    arithmetic_per_pair: float
    global_bytes_ratio: float  # read, to Q, K, V of each row block once


def demangled(name: str) -> tuple[str, int, int] | None:
    """Element, d and dv of a forward kernel."""
    found = re.search(r"fwd_kernel.*?FwdTraitsI(.*?)Li(\d+)ELi(\d+)E", name)
    if found is None:
        return None
    return ("bf16" if "bfloat16" in found[1] else "fp16", int(found[2]), int(found[3]))


def ptxas_report(d: int, dv: int) -> tuple[int, int]:
    """Registers and spilled bytes of the bf16 kernel."""
    for source in build_cuda.sources():
        text = build_cuda.log_of(source).read_text()
        for part in text.split("Compiling entry function")[1:]:
            if demangled(part.split("'")[1]) == ("bf16", d, dv):
                spills = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
                return int(re.findall(r"Used (\d+) registers", part)[0]), spills
    raise SystemExit(f"no report of the forward kernel for ({d}, {dv}): make build")


def simulated(d: int, dv: int, seqlen: int, causal: bool) -> dict[str, float]:
    """The counters of one launch, one head."""
    sim = simulator.start()
    gen = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen).to(torch.bfloat16)

    k_heads = 2 if dv == 2 * d else 1  # V2 has one K
    q, k = normal(1, seqlen, 2, d), normal(1, seqlen, k_heads, d)
    with torch.no_grad():
        diff_flash_attn_func(q, k, normal(1, seqlen, 1, dv), 0.8, causal=causal)
    _, counters = sim.device.launches()[-1]
    return counters


def tiled_pairs(seqlen: int, rows: int, keys: int, causal: bool) -> int:
    """Pairs of the tiles that hold a visible one."""
    total = 0
    for first in range(0, seqlen, rows):
        seen = min(first + rows, seqlen) if causal else seqlen
        total += rows * -(-seen // keys) * keys
    return total


def count(d: int, dv: int, seqlen: int, causal: bool) -> Counts:
    rows, keys = (128 if d <= 64 else 64), 32  # FwdTraits
    loops = {
        demangled(name): loop for path in _objects() for name, loop in main_loops(path).items()
    }
    loop, c = loops["bf16", d, dv], simulated(d, dv, seqlen, causal)
    registers, spilled = ptxas_report(d, dv)
    pairs = tiled_pairs(seqlen, rows, keys, causal)
    reads = c["shared_wavefronts"] - c["async_bytes"] / 128
    arithmetic = sum(loop.opcodes[name] for name in ARITHMETIC)
    mma = c["mma_flop"] / MMA_FLOP
    once = 2 * (2 * seqlen * d + pairs / rows * ((2 if dv == 2 * d else 1) * d + dv))
    return Counts(
        kernel="fwd",
        headdim=d,
        headdim_v=dv,
        seqlen=seqlen,
        causal=causal,
        registers=registers,
        spilled_bytes=spilled,
        hmma=loop.hmma,
        others_per_hmma=loop.others_per_hmma,
        flop_ratio=c["mma_flop"] / (pairs * (4 * d + 4 * dv)),
        wavefronts_per_mma=reads / mma,
        wavefronts_ratio=c["shared_wavefronts"] / c["shared_wavefronts_ideal"],
        flop_per_pair=c["mma_flop"] / pairs,
        shared_bytes_per_pair=reads * 128 / pairs,
        exp2_per_pair=c["ex2"] / pairs,
        arithmetic_per_pair=arithmetic * 32 / (loop.hmma * MMA_FLOP) * c["mma_flop"] / pairs,
        global_bytes_ratio=c["async_bytes"] / once,
    )


def _objects() -> list[Path]:
    return [build_cuda.object_of(s) for s in build_cuda.sources() if s.stem.startswith("fwd_d")]


def show(counts: list[Counts]) -> None:
    header = ["kernel", "S", "regs", "spills", "HMMA", "other/HMMA", "mark", "flop ÷ formula",
              "mark", "wavefronts/mma", "mark", "÷ conflict-free", "bytes ÷ once"]  # fmt: skip
    lines = []
    for c in counts:
        mark = MARKS.get((c.kernel, c.headdim, c.headdim_v))
        lines.append([
            f"{c.kernel} ({c.headdim}, {c.headdim_v})", f"{c.seqlen}{' causal' * c.causal}",
            c.registers, c.spilled_bytes, c.hmma, c.others_per_hmma,
            mark and mark.others_per_hmma, c.flop_ratio, mark and mark.flop_ratio,
            c.wavefronts_per_mma, mark and mark.wavefronts_per_mma, c.wavefronts_ratio,
            c.global_bytes_ratio,
        ])  # fmt: skip
    print(tabulate(lines, header, tablefmt="github", floatfmt=".3g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--csv", type=Path, help="also write the figures there")
    args = parser.parse_args()
    counts = [count(d, dv, args.seqlen, causal) for d, dv in SHAPES for causal in (False, True)]
    show(counts)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(counts[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(c) for c in counts)


if __name__ == "__main__":
    main()
