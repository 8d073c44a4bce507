"""A kernel's counted figures, their file, and what they are measured against.

Limits come from the neighbours' own compiled kernels (FlashAttention-2, flex_head_fa; nvcc 13.0,
sm_80) and from the formulas; goals are of predicted speeds.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

# Per pair: of a query row and a key in a tile, both components together. Per row: of a query row
# and a head. Per block: of 16 cached keys and a KV head.
FIGURES = {
    "registers": "per thread",
    "spilled_bytes": "per thread, stores and loads",
    "tile_rows": "query rows that are multiplied together, or not at all",
    "tile_keys": "the same of keys",
    "block_rows": "query rows of a CTA",
    "hmma": "tensor core instructions of the main loop",
    "others": "other instructions of the main loop, per warp and step",
    "others_per_hmma": "other instructions of the main loop, divided by those",
    "flop_ratio": "the tensor cores' flop divided by the formula's for these tiles",
    "wavefronts_per_mma": "of shared memory, without cp.async's writes, per mma instruction",
    "loop_wavefronts_per_mma": "the same for the main loop alone",
    "wavefronts_ratio": "wavefronts divided by those without bank conflicts",
    "loop_wavefronts_ratio": "the same for the main loop alone",
    "flop_per_pair": "of the tensor cores",
    "shared_bytes_per_pair": "128 per wavefront, without cp.async's writes",
    "exp2_per_pair": "MUFU of the main loop, by thread",
    "fma_per_pair": "the same of the FMA pipe: FFMA, FADD, FMUL, IMAD",
    "alu_per_pair": "the same of the ALU pipe: comparisons, conversions, logic, addresses, moves",
    "l2_bytes_per_pair": "32 per sector that is read, written or added to",
    "global_bytes_ratio": "copied, over Q once and K, V once per CTA that sees them, or reversed",
    "reds_per_step": "additions to dQ in memory, per warp and step",
    "sectors_per_red": "32 bytes each",
    "bytes_per_row": "distinct bytes of global memory",
    "saved_bytes_per_row": "what autograd saves beyond q, k, v and the parameters, with the norm",
    "copied_ratio": "bytes of cp.async divided by those of the visible cache",
    "distinct_ratio": "distinct bytes of global memory, except the workspace, over the cache's",
    "workspace_ratio": "bytes of the workspace divided by the cache's",
    "mma_per_block": "instructions, including Q and the merge",
    "instructions_per_block": "warp instructions, the same",
    "launches": "of the whole call",
}

KERNELS = {
    "fwd": "forward, inference",
    "fwd saving": "forward that also leaves what backward needs",
    "fwd sm90": "forward of sm_90a, inference",
    "bwd": "backward",
    "bwd prepare": "before it: row constants, u, and zeros for dQ",
    "bwd round": "after it: dQ",
    "bwd weight": "after it, where there is a norm: the gradient of its weight",
    "decode": "a step of decoding",
    "combine": "after it: splits",
}

# The most that a figure of any kernel of this name may be.
LIMITS: dict[str, dict[str, float]] = {
    "fwd": {
        "spilled_bytes": 0,
        "flop_ratio": 1.02,
        "loop_wavefronts_ratio": 1.02,
        "global_bytes_ratio": 1.0,
    },
    "fwd sm90": {"spilled_bytes": 0, "flop_ratio": 1.02, "global_bytes_ratio": 1.0},
    "bwd": {
        "spilled_bytes": 0,
        "flop_ratio": 1.03,
        "loop_wavefronts_ratio": 1.03,
    },
    "decode": {
        "spilled_bytes": 0,
        "copied_ratio": 1.02,
        "distinct_ratio": 1.02,
        "workspace_ratio": 0.02,
        "launches": 2,
    },
}
# Of the widths that matter most, also these. Hopper's others: those of compiled sketches that had
# neither masks nor two intervals of keys (517 and 314), and 5 %.
MARKS: dict[tuple[str, int, int], dict[str, float]] = {
    ("fwd", 64, 128): {"others_per_hmma": 2.5, "loop_wavefronts_per_mma": 1.2},
    ("fwd", 128, 256): {"others_per_hmma": 2.2, "loop_wavefronts_per_mma": 1.7},
    ("fwd sm90", 64, 128): {"others": 542},
    ("fwd sm90", 128, 256): {"others": 329},
    ("bwd", 64, 128): {"others_per_hmma": 2.5, "loop_wavefronts_per_mma": 2.3},
    ("bwd", 128, 256): {"others_per_hmma": 2.0, "loop_wavefronts_per_mma": 2.4},
}

# × four calls of FlashAttention-2, causal, on an A100, by head dim.
GOALS = {"fwd": {64: 1.5, 128: 1.25}, "bwd": {64: 1.9, 128: 1.7}, "fwd + bwd": {64: 1.8, 128: 1.5}}
# × the kernel of sm_80, causal, 16k, on an H100, by head dim.
HOPPER_GOALS = {64: 1.4, 128: 1.75}
# Of the bandwidth of memory, at so many bytes of cache.
DECODE_GOAL, DECODE_BYTES = 0.85, 64 << 20


@dataclass(frozen=True)
class Counts:
    """One kernel on one problem. Figures that do not apply to it are absent."""

    kernel: str  # a key of KERNELS
    headdim: int
    headdim_v: int
    problem: str
    figures: dict[str, float]

    def __post_init__(self) -> None:
        unknown = {self.kernel, *self.figures} - {*KERNELS, *FIGURES}
        assert not unknown, f"names without a meaning: {unknown}"


FIELDS = ["kernel", "headdim", "headdim_v", "problem"]


def write(path: Path, counts: list[Counts]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS + list(FIGURES), lineterminator="\n")
        writer.writeheader()
        for c in counts:
            rounded = {name: f"{value:.6g}" for name, value in c.figures.items()}
            writer.writerow({name: getattr(c, name) for name in FIELDS} | rounded)


def read(path: Path) -> list[Counts]:
    with path.open(newline="") as file:
        return [_parse(line) for line in csv.DictReader(file)]


def _parse(line: dict[str, str]) -> Counts:
    figures = {name: float(line[name]) for name in FIGURES if line[name]}
    sizes = int(line["headdim"]), int(line["headdim_v"])
    return Counts(line["kernel"], *sizes, line["problem"], figures)


def limits(c: Counts) -> dict[str, float]:
    """By figure, for one kernel."""
    found = LIMITS.get(c.kernel, {}) | MARKS.get((c.kernel, c.headdim, c.headdim_v), {})
    if c.kernel == "bwd":
        found |= {"saved_bytes_per_row": 4 * c.headdim_v + 12}
    return found


def misses(c: Counts) -> list[str]:
    """Figures over their limits."""
    return [
        name
        for name, most in limits(c).items()
        if name in c.figures and c.figures[name] > most * (1 + 1e-6)
    ]
