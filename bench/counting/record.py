"""A kernel's counted figures, and their file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

# Per pair: of a query row and a key in a tile, both components together. Per row: of a query row
# and head. Per block: of 16 cached keys and a KV head.
FIGURES = {
    "registers": "a thread",
    "spilled_bytes": "a thread, stores and loads",
    "tile_rows": "query rows that are multiplied together, or not at all",
    "tile_keys": "the same of keys",
    "block_rows": "query rows of a CTA",
    "hmma": "tensor core instructions of the main loop",
    "others_per_hmma": "other instructions of the main loop, over them",
    "flop_ratio": "the tensor cores' flop to the formula's, over the tiles",
    "wavefronts_per_mma": "of shared memory, without cp.async's writes, over mma instructions",
    "loop_wavefronts_per_mma": "the same of the main loop alone",
    "wavefronts_ratio": "wavefronts to those without bank conflicts",
    "loop_wavefronts_ratio": "the same of the main loop alone",
    "flop_per_pair": "of the tensor cores",
    "shared_bytes_per_pair": "128 a wavefront, without cp.async's writes",
    "exp2_per_pair": "MUFU of the main loop, by thread",
    "fma_per_pair": "the same of the FMA pipe: FFMA, FADD, FMUL, IMAD",
    "alu_per_pair": "the same of the ALU pipe: comparisons, conversions, logic, addresses, moves",
    "l2_bytes_per_pair": "32 a sector read, written or added to",
    "global_bytes_ratio": "copied, to Q once and K, V once a CTA that sees them; or the reverse",
    "reds_per_step": "additions to dQ in memory, a warp and a step",
    "sectors_per_red": "32 bytes each",
    "bytes_per_row": "distinct bytes of global memory",
    "saved_bytes_per_row": "what autograd saves beyond q, k, v and the parameters, with the norm",
    "copied_ratio": "bytes of cp.async to those of the visible cache",
    "distinct_ratio": "distinct bytes of global memory, less the workspace, to the cache's",
    "workspace_ratio": "bytes of the workspace to the cache's",
    "mma_per_block": "instructions, Q and the merge included",
    "instructions_per_block": "warp instructions, the same",
    "launches": "of the whole call",
}

KERNELS = {
    "fwd": "forward, inference",
    "fwd saving": "forward that also leaves what backward needs",
    "bwd": "backward",
    "bwd prepare": "before it: row constants, u, and zeros for dQ",
    "bwd round": "after it: dQ",
    "bwd weight": "after it, where there is a norm: the gradient of its weight",
    "decode": "a step of decoding",
    "combine": "after it: splits",
}


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
