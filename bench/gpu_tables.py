"""Tables of counted figures and predicted speeds: a header and lines of text each."""

from __future__ import annotations

import math

from clocks import DEVICES
from counting.record import FIGURES, Counts
from decode_model import Decode, decode
from marks import DECODE_BYTES, DECODE_GOAL, limits, misses
from neighbours import FA2, FA3, RECIPES
from predictions import training

Table = tuple[list[str], list[list[str]]]

SEQLENS = [2048, 4096, 16384]
# Figures by kernel, in the order of columns.
MATRIX = ("fwd", "fwd saving", "bwd")
FOR_MODEL = ("flop_per_pair", "shared_bytes_per_pair", "exp2_per_pair", "fma_per_pair",
             "alu_per_pair", "l2_bytes_per_pair")  # fmt: skip
BESIDE = ("bwd prepare", "bwd round", "bwd weight", "combine")


def counted(counts: list[Counts], kernels: tuple[str, ...]) -> Table:
    """What was counted of these kernels, without what only the model reads."""
    mine = [c for kernel in kernels for c in counts if c.kernel == kernel]
    names = [n for n in FIGURES if n not in FOR_MODEL and any(n in c.figures for c in mine)]
    header = ["kernel (d, dv)", "problem", *(name.replace("_", " ") for name in names)]
    lines = [
        [f"{c.kernel} ({c.headdim}, {c.headdim_v})", c.problem, *(cell(c, n) for n in names)]
        for c in mine
    ]
    return header, lines


def cell(c: Counts, name: str) -> str:
    """A figure, and its limit where it is over that."""
    if name not in c.figures:
        return ""
    value = f"{c.figures[name]:.4g}"
    return f"**{value}** > {limits(c)[name]:g}" if name in misses(c) else value


def formulas(counts: list[Counts]) -> Table:
    """Flop a pair and bytes a token in units of d, ours counted, beside several calls'."""
    found = {
        c.kernel: f" ({c.figures['flop_per_pair'] / c.headdim:.4g} counted)"
        for c in counts
        if (c.headdim, c.headdim_v) == (64, 128) and c.kernel in ("fwd", "bwd")
    }
    lines = [
        [name, *(f"{n}d{found.get(way, '') if name == 'ours' else ''}" for way, n in row.items())]
        for name, row in RECIPES.items()
    ]
    return ["(64, 128)", "forward flop", "backward flop", "decoding, bytes a token"], lines


def check() -> Table:
    """The model beside what was published."""
    lines = [
        [n.name, str(n.d), n.device.name, f"{n.published:g}", f"{n.modelled:.1f}",
         f"{100 * n.error:+.1f} %"]
        for n in [*FA2.values(), *FA3.values()]
    ]  # fmt: skip
    return ["TFLOP/s", "d", "device", "published", "model", "error"], lines


def predicted_training(counts: list[Counts], seqlens: list[int]) -> Table:
    lines = [
        [p.direction, p.device, str(p.d), str(p.seqlen), f"{p.tflops:.0f}",
         judged(truncated(p.times_fa2), p.times_fa2, p.goal), goal_text(p.goal),
         truncated(p.times_fa3) if p.times_fa3 else ""]
        for device in DEVICES
        for p in training(counts, device, seqlens)
    ]  # fmt: skip
    header = ["predicted, causal", "device", "d", "S", "TFLOP/s", "× four FA2 calls", "goal",
              "× four FA3 calls"]  # fmt: skip
    return header, lines


def predicted_decode(counts: list[Counts]) -> Table:
    lines = [
        [p.device, "in splits" if p.split else "no splits", str(p.cache_bytes >> 20),
         "–".join(f"{1e6 * seconds:.1f}" for seconds in p.seconds),
         judged(share_text(p), p.usual, DECODE_GOAL), f"≥ {DECODE_GOAL:.0%}"]
        for device in DEVICES
        for split in (True, False)
        for p in (decode(counts, device, n * DECODE_BYTES, split) for n in (1, 4, 16))
    ]  # fmt: skip
    return [
        "predicted step of decoding",
        "keys",
        "MB of cache",
        "µs",
        "of bandwidth",
        "goal",
    ], lines


def share_text(p: Decode) -> str:
    worst, best = p.of_bandwidth
    return f"{100 * worst:.0f}–{100 * best:.0f}%"


def truncated(times: float) -> str:
    """Not rounded: 1.897 does not reach 1.9."""
    return f"{math.floor(100 * times) / 100:.2f}"


def judged(text: str, value: float, goal: float | None) -> str:
    """Bold where it misses its goal."""
    return text if goal is None or value >= goal else f"**{text}**"


def goal_text(goal: float | None) -> str:
    return "" if goal is None else f"≥ {goal:g}"
