"""What the kernels do where heads stream, counted: products, bytes and processors by the mask.

    python bench/counting/streaming.py     count anew, into docs/streaming_counts.csv

bf16, (d, dv) = (64, 128), 64 sinks, 255 keys to the left. streaming_speed.py shows the counts and
predicts times.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from counting.runs import launches, normal, only, simulator  # noqa: E402

from diffattn_cuda import (  # noqa: E402
    diff_flash_attn_func,
    diff_flash_attn_with_kvcache,
    reference,
)

CSV = ROOT / "docs" / "streaming_counts.csv"
SINK, LEFT = 64, 255
SEEN = SINK + LEFT + 1  # keys of a row of a streaming head
D, DV = 64, 128
KEY_BYTES = 2 * (2 * D + DV)  # K1, K2 and V
A100_PROCESSORS = 108
# For these head dims: (rows of a CTA, keys of a step), and (keys of a CTA, rows of a step).
BLOCKS = {"fwd_kernel": (128, 64), "bwd_kernel": (128, 32)}


@dataclass(frozen=True)
class Visited:
    """Pairs of a query and a key that tensor cores multiply."""

    pairs: float
    visible: int
    two_tiles: int  # pairs of two tiles for each block of rows, or of keys

    @property
    def beyond(self) -> float:
        """Without two tiles per block, over the visible ones."""
        return (self.pairs - self.two_tiles) / self.visible


def visited(kernel: str, streaming: tuple[bool, ...], seqlen: int = 1024) -> Visited:
    """Of a forward and backward, a head per KV head."""
    heads, (block, step) = len(streaming), BLOCKS[kernel]

    def flop(**mask: Any) -> float:
        def run() -> None:
            sizes = [(2 * heads, D), (2 * heads, D), (heads, DV)]
            q, k, v = (normal(i, 1, seqlen, *n).requires_grad_() for i, n in enumerate(sizes))
            out = diff_flash_attn_func(q, k, v, 0.5, **mask)
            assert isinstance(out, torch.Tensor)
            out.backward(normal(3, *out.shape))

        return only(launches(run), kernel).counters["mma_flop"]

    masked = flop(causal=True, window_size=(LEFT, 0), sink_size=SINK, streaming_heads=streaming)
    visible = sum(
        int(reference.visible_keys(seqlen, seqlen, True, window, torch.device("cpu"), sink).sum())
        for window, sink in (((LEFT, 0), SINK) if s else ((-1, -1), 0) for s in streaming)
    )
    # In a backward the blocks of sinks are counted apart from those of the window.
    blocks = seqlen // block + (kernel == "bwd_kernel")
    pairs = masked / flop() * heads * seqlen**2
    return Visited(pairs, visible, 2 * heads * blocks * block * step)


@dataclass(frozen=True)
class Step:
    """A token of one sequence on a full cache."""

    full: int  # of the KV heads
    heads: int = 4  # KV heads, with a query head each
    seqlen: int = 8192
    d: int = D
    splits: int = 0

    def __call__(self) -> None:
        diff_flash_attn_with_kvcache(
            normal(0, 1, 1, 2 * self.heads, self.d),
            normal(1, 1, self.seqlen, 2 * self.heads, self.d),
            normal(2, 1, self.seqlen, self.heads, 2 * self.d), 0.5, causal=True,
            window_size=(LEFT, 0), sink_size=SINK, num_splits=self.splits,
            streaming_heads=[head >= self.full for head in range(self.heads)],
        )  # fmt: skip

    @property
    def keys(self) -> int:
        """That the mask lets the heads see, together."""
        return self.full * self.seqlen + (self.heads - self.full) * SEEN


@contextmanager
def workspaces(launch: bool) -> Iterator[list[int]]:
    """The bytes that each call asks for; launch=False: nothing runs."""
    sim, asked = simulator.start(), []

    def serve(params: Any) -> None:
        with sim.device:  # the number of processors is the device's
            asked.append(params.workspace())
        if launch:
            sim.launch_described(params)

    sim.serve = serve
    try:
        yield asked
    finally:
        sim.serve = sim.launch_described


def decode_bytes(step: Step) -> tuple[float, int]:
    """Distinct bytes without the workspace, over those of the keys that are seen; launches."""
    with workspaces(launch=True) as asked:
        found = launches(step)
    counted = only(found, "decode_kernel").counters["global_distinct_bytes"] - asked[0]
    return counted / (step.keys * KEY_BYTES), len(found)


def cost_of_sinks(rows: int) -> float:
    """Instructions per block of keys of the kernel that walks two intervals, over those of the
    other, where all keys are seen: the difference between two lengths."""

    def instructions(seqlen: int, **mask: Any) -> float:
        tensors = normal(0, 1, rows, 4, D), normal(1, 1, seqlen, 2, D), normal(2, 1, seqlen, 1, DV)

        def run() -> None:
            diff_flash_attn_with_kvcache(*tensors, 0.5, causal=True, num_splits=1, **mask)

        return only(launches(run), "decode_kernel").counters["warp_instructions"]

    def more(**mask: Any) -> float:
        return instructions(1024, **mask) - instructions(512, **mask)

    return more(window_size=(2048, 0), sink_size=1) / more()


def busy(step: Step) -> tuple[int, float]:
    """The CTAs, and how many of them would be busy if all had as much to read as the longest."""
    with workspaces(launch=False) as asked:
        step()
    # For each row: two results of each split, an LSE and what it lost, and the number of splits.
    splits = (asked[0] // step.heads - 4) // (2 * (2 * step.d + 2) * 4)
    ctas = step.full * splits + step.heads - step.full
    return ctas, splits * step.keys / step.seqlen


@dataclass(frozen=True)
class Counted:
    what: str
    heads: str
    problem: str
    value: float
    limit: str


def count() -> Iterator[Counted]:
    for kernel, title in (("fwd_kernel", "forward"), ("bwd_kernel", "backward")):
        for streaming, heads in (((True, True), "all stream"), ((False, True), "half")):
            found, per = visited(kernel, streaming), "row" if title == "forward" else "key"
            yield Counted(f"{title}: pairs of visited tiles, ÷ visible", heads, "S = 1024",
                          found.pairs / found.visible, "")  # fmt: skip
            yield Counted(f"{title}: without 2 tiles per {per} block", heads, "S = 1024",
                          found.beyond, "≤ 1.15")  # fmt: skip
    for full, heads in ((1, "a quarter full"), (2, "half")):
        ratio, number = decode_bytes(Step(full, splits=4))
        problem = "8,192 keys, 4 KV heads"
        yield Counted("decoding: distinct bytes ÷ those of the law", heads, problem, ratio,
                      "1 ± 0.02")  # fmt: skip
        yield Counted("decoding: launches", heads, problem, number, "2")
    for full, heads in ((2, "a quarter full"), (4, "half")):
        _, work = busy(Step(full, heads=8, seqlen=32768, d=8))
        yield Counted("decoding: share of 108 processors that is busy", heads,
                      "32,768 keys, 8 KV heads", work / A100_PROCESSORS, "≥ 0.85")  # fmt: skip

    for rows, which, limit in ((1, "few", "≤ 1.1"), (9, "many", "≤ 1.15")):
        yield Counted("decoding: instructions per block ÷ those without sinks", "all full",
                      f"{which} rows", cost_of_sinks(rows), limit)  # fmt: skip


def write(path: Path, rows: list[Counted]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Counted)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row) | {"value": f"{row.value:.4g}"})


def read(path: Path = CSV) -> list[Counted]:
    with path.open(newline="") as file:
        return [
            Counted(
                line["what"], line["heads"], line["problem"], float(line["value"]), line["limit"]
            )
            for line in csv.DictReader(file)
        ]


if __name__ == "__main__":
    write(CSV, list(count()))
