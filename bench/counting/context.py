"""Predicts what context parallelism costs per layer and rank: docs/distributed.md has its tables.

    python bench/counting/context.py

The kernels' speeds are those that docs/predictions.md predicts for an H100. Messages take their
bytes over a link's rate. Both are formulas; nothing here was measured.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools")]

from page import rewrite, table  # noqa: E402

PAGE = ROOT / "docs" / "distributed.md"
HEADS, KV_HEADS, D, DV = 32, 8, 128, 256  # V1, bf16
KEYS = 2 * KV_HEADS * (2 * D + DV)  # bytes per token: both maps' keys, and the values
QUERIES, OUT = 2 * HEADS * 2 * D, 2 * HEADS * DV
NODE = 8  # GPUs that NVLink joins
NVLINK, NETWORK, MEMORY = 450e9, 50e9, 3.35e12  # bytes per second, of a GPU in one direction
MERGE = 9  # times that merging two parts in PyTorch reads or writes all components
PROBLEMS = [(2**17, 8), (2**20, 64), (2**22, 512)]


@dataclass(frozen=True)
class Cost:
    sent: tuple[float, float]  # bytes, forward and backward
    kept: float  # bytes for the backward
    more: float  # bytes that the backward needs beyond these
    seconds: tuple[float, float]


def speed(direction: str) -> tuple[float, float]:
    """flop per second of this package's kernel, and of one FA2 call, which does 16d or 40d."""
    row = re.search(
        rf"^\| {direction} \| H100 \| {D} \| 16384 \| (\S+) \| (\S+) \|",
        (ROOT / "docs" / "predictions.md").read_text(), re.MULTILINE,
    )  # fmt: skip
    assert row is not None
    ours, ratio = float(row[1]) * 1e12, float(row[2])
    return ours, ours / ratio * (16 / 12 if direction == "fwd" else 40 / 20)


def compute(tokens: int, ranks: int, per_pair: int, rate: float) -> float:
    """Seconds of a rank's kernels; causal and balanced."""
    return tokens * tokens / 2 / ranks * HEADS * per_pair * D / rate


def allgather(tokens: int, ranks: int) -> Cost:
    own = tokens // ranks
    # A node takes in each key once, by the links of all its GPUs.
    rate = NVLINK if ranks <= NODE else NODE * NETWORK
    sent = (ranks - 1) * own * KEYS, 2 * (ranks - 1) * own * KEYS
    seconds = (
        compute(tokens, ranks, 12, speed("fwd")[0]) + sent[0] / rate,
        compute(tokens, ranks, 20, speed("bwd")[0]) + sent[1] / rate,
    )
    return Cost(sent, own * (QUERIES + 2 * OUT) + tokens * KEYS, 4 * tokens * KEYS, seconds)


def ulysses(tokens: int, ranks: int) -> Cost:
    own = tokens // ranks
    each_way = (ranks - 1) / ranks * own * (QUERIES + KEYS + OUT)
    seconds = (
        compute(tokens, ranks, 12, speed("fwd")[0]) + each_way / NVLINK,
        compute(tokens, ranks, 20, speed("bwd")[0]) + each_way / NVLINK,
    )
    kept, more = own * (QUERIES + KEYS + 3 * OUT), 2 * own * (QUERIES + KEYS + OUT)
    return Cost((each_way, each_way), kept, more, seconds)


def ring(tokens: int, ranks: int, calls: int = 1) -> Cost:
    """calls = 2: one ring for each map on ordinary kernels, so that V travels twice."""
    own = tokens // ranks
    keys = KEYS if calls == 1 else 2 * KV_HEADS * 2 * (D + DV)
    link = NVLINK if ranks <= NODE else NETWORK
    merging = MERGE * own * 4 * OUT / MEMORY
    hops = []
    for direction, per_pair, size in (("fwd", 12, 1), ("bwd", 20 if calls == 1 else 28, 3)):
        kernels = compute(tokens, ranks, per_pair, speed(direction)[calls - 1]) / ranks
        hops.append(max(kernels, size * own * keys / link))
    seconds = ranks * (hops[0] + merging), ranks * hops[1]
    sent = (ranks - 1) * own * keys, (3 * ranks - 1) * own * keys
    kept = own * (QUERIES + KEYS + 4 * OUT)
    return Cost(sent, kept, own * (2 * QUERIES + 6 * keys), seconds)


def rows() -> list[list[str]]:
    found = []
    for tokens, ranks in PROBLEMS:
        modes = {"all-gather": allgather(tokens, ranks), "Ulysses": ulysses(tokens, ranks),
                 "ring": ring(tokens, ranks), "two rings": ring(tokens, ranks, 2)}  # fmt: skip
        if KV_HEADS % ranks:
            del modes["Ulysses"]
        for name, cost in modes.items():
            sizes = (x / 2**30 for x in (*cost.sent, cost.kept, cost.more))
            times = (x * 1e3 for x in cost.seconds)
            slower = sum(modes["two rings"].seconds) / sum(cost.seconds)
            length = f"{tokens // 2**20}M" if tokens >= 2**20 else f"{tokens // 2**10}K"
            found.append([length, str(ranks), name, *(f"{x:.1f}" for x in sizes),
                          *(f"{x:.0f}" for x in times), f"{slower:.2f}"])  # fmt: skip
    return found


def text() -> str:
    header = ["predicted, per layer and rank", "GPUs", "mode", "GiB sent, forward", "backward",
              "GiB kept", "and in backward", "ms, forward", "backward", "× two rings"]  # fmt: skip
    return table(header, rows())


if __name__ == "__main__":
    rewrite(PAGE, "context", text())
