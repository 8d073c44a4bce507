"""Tables of counted figures and predicted speeds, for README and docs/, from docs/counts.csv."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from page import rewrite, table

from . import peers
from .figures import (
    DECODE_BYTES,
    DECODE_GOAL,
    FIGURES,
    GOALS,
    HOPPER_GOALS,
    KERNELS,
    Counts,
    limits,
    misses,
)
from .model import A100, DEVICES, FA2, FA3, H100, RECIPES, Decode, Device, decode, predict

Table = tuple[list[str], list[list[str]]]

SEQLENS = [2048, 4096, 16384]
# Figures by kernel, in the order of columns.
MATRIX = ("fwd", "fwd saving", "fwd sm90", "bwd")
FOR_MODEL = ("flop_per_pair", "shared_bytes_per_pair", "exp2_per_pair", "fma_per_pair",
             "alu_per_pair", "l2_bytes_per_pair")  # fmt: skip
SUMMED_UP = ("flop_ratio", "others_per_hmma", "loop_wavefronts_per_mma")
HEADER = ["", "d", "flop per pair: ours, four calls", "counted ÷ formula", "others per HMMA",
          "shared wavefronts per mma", "predicted × four FA2 calls, A100: S = 2k, 4k, 16k", "goal",
          "H100"]  # fmt: skip
TITLES = {"fwd": "forward", "bwd": "backward", "fwd + bwd": "forward + backward"}
AROUND = ("bwd prepare", "bwd round", "bwd weight", "combine")


def counted(counts: list[Counts], kernels: tuple[str, ...]) -> Table:
    """The counted figures of these kernels, except those that only the model reads."""
    mine = [c for kernel in kernels for c in counts if c.kernel == kernel]
    names = [n for n in FIGURES if n not in FOR_MODEL and any(n in c.figures for c in mine)]
    header = ["kernel (d, dv)", "problem", *(name.replace("_", " ") for name in names)]
    lines = [
        [f"{c.kernel} ({c.headdim}, {c.headdim_v})", c.problem, *(cell(c, n) for n in names)]
        for c in mine
    ]
    return header, lines


def cell(c: Counts, name: str) -> str:
    """A figure, with its limit if it exceeds that."""
    if name not in c.figures:
        return ""
    value = f"{c.figures[name]:.4g}"
    return f"**{value}** > {limits(c)[name]:g}" if name in misses(c) else value


def formulas(counts: list[Counts]) -> Table:
    """Flop per pair and bytes per token in units of d, ours and those of several calls."""
    found = {
        c.kernel: f" ({c.figures['flop_per_pair'] / c.headdim:.4g} counted)"
        for c in counts
        if (c.headdim, c.headdim_v) == (64, 128) and c.kernel in ("fwd", "bwd")
    }
    lines = [
        [name, *(f"{n}d{found.get(way, '') if name == 'ours' else ''}" for way, n in row.items())]
        for name, row in RECIPES.items()
    ]
    return ["(64, 128)", "forward flop", "backward flop", "decoding, bytes per token"], lines


def check() -> Table:
    """The model compared with what was published."""
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
        for p in predict(counts, device, seqlens)
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


def summary(counts: list[Counts]) -> Table:
    """README's: the two widths that matter most."""
    return HEADER, [*training_lines(counts), *hopper_lines(counts), *decode_lines(counts)]


def training_lines(counts: list[Counts]) -> Iterator[list[str]]:
    for direction, goals in GOALS.items():
        kernels = direction.split(" + ")
        ours, theirs = (
            sum(RECIPES[recipe][kernel] for kernel in kernels)
            for recipe in ("ours", "four calls, V = d")
        )
        for d, goal in goals.items():
            yield [TITLES[direction], str(d), f"{ours}d, {theirs}d",
                   *figures(counts, direction, d), times(counts, A100, direction, d),
                   goal_text(goal), times(counts, H100, direction, d)]  # fmt: skip


def hopper_lines(counts: list[Counts]) -> Iterator[list[str]]:
    """The kernel of sm_90a, next to that of sm_80 on the same GPU."""
    ours, theirs = (RECIPES[recipe]["fwd"] for recipe in ("ours", "four calls, V = d"))
    for d, goal in HOPPER_GOALS.items():
        (c,) = (c for c in counts if (c.kernel, c.headdim, c.headdim_v) == ("fwd sm90", d, 2 * d)
                and "full" in c.problem)  # fmt: skip
        found = [peers.times_sm80(counts, d, s) for s in SEQLENS]
        long = judged(truncated(found[-1]), found[-1], goal)
        step = f"a step: {c.figures['others']:.0f} (≤ {limits(c)['others']})"
        times = ", ".join([*map(truncated, found[:-1]), long])
        yield ["forward, Hopper's kernel × sm_80's", str(d), f"{ours}d, {theirs}d",
               limited(c, "flop_ratio"), step, "", "", f"16k: ≥ {goal:g}", times]  # fmt: skip


def figures(counts: list[Counts], kernel: str, d: int) -> list[str]:
    """Each with its limit; a direction that takes two kernels has none of its own."""
    shape = (kernel, d, 2 * d)
    found = [c for c in counts if (c.kernel, c.headdim, c.headdim_v) == shape]
    cells = [limited(c, name) for c in found if "full" in c.problem for name in SUMMED_UP]
    return cells or [""] * len(SUMMED_UP)


def limited(c: Counts, name: str) -> str:
    value = f"{c.figures[name]:.3f}"
    return f"{f'**{value}**' if name in misses(c) else value} (≤ {limits(c)[name]:g})"


def times(counts: list[Counts], device: Device, direction: str, d: int) -> str:
    found = (p for p in predict(counts, device, SEQLENS) if (p.direction, p.d) == (direction, d))
    return ", ".join(judged(truncated(p.times_fa2), p.times_fa2, p.goal) for p in found)


def decode_lines(counts: list[Counts]) -> Iterator[list[str]]:
    ours, theirs = (RECIPES[name]["decode"] for name in ("ours", "four calls, V = d"))
    copied = max(c.figures["copied_ratio"] for c in counts if c.kernel == "decode")
    for split, keys in ((False, "many sequences"), (True, "few: keys in splits")):
        found = [decode(counts, device, DECODE_BYTES, split) for device in (A100, H100)]
        a100, h100 = (judged(share_text(p), p.usual, DECODE_GOAL) for p in found)
        yield [f"decoding, {DECODE_BYTES >> 20} MB of cache, {keys}", "64",
               f"bytes per token: {ours}d, {theirs}d", f"{copied:.3f}", "", "",
               f"{a100} of memory's bandwidth", f"≥ {DECODE_GOAL:.0%}", h100]  # fmt: skip


def caption() -> str:
    """How far the model is from published speeds."""
    _, lines = check()
    errors = ", ".join(f"{name} d = {d} {error}" for name, d, *_, error in lines)
    return f"The model compared with published speeds: {errors}."


def meanings(names: dict[str, str]) -> str:
    return "\n".join(f"- *{name.replace('_', ' ')}*: {text}" for name, text in names.items())


def main_figures(counts: list[Counts], kernels: tuple[str, ...]) -> Table:
    """Of the two widths that matter most, on the first full problem of each."""
    first = {
        (c.kernel, c.headdim): c
        for c in reversed(counts)
        if c.headdim in (64, 128) and c.headdim_v == 2 * c.headdim and "causal" not in c.problem
    }
    return counted([first[kernel, d] for kernel in kernels for d in (64, 128)], kernels)


def write(readme: Path, docs: Path, counts: list[Counts]) -> None:
    rewrite(readme, "gpu table", f"{table(*summary(counts))}\n\n{caption()}")
    page = docs / "counts.md"
    rewrite(page, "kernels", meanings(KERNELS))
    rewrite(page, "figures", meanings(FIGURES))
    rewrite(page, "training", table(*main_figures(counts, ("fwd", "bwd"))))
    rewrite(page, "decoding", table(*main_figures(counts, ("decode",))))
    rewrite(page, "formulas", table(*formulas(counts)))
    page = docs / "predictions.md"
    rewrite(page, "check", table(*check()))
    rewrite(page, "predicted training", table(*predicted_training(counts, SEQLENS)))
    rewrite(page, "predicted decoding", table(*predicted_decode(counts)))
    page = docs / "predictions_sm90.md"
    header = ["(d, dv)", "keys a step", "HGMMA", "others", "flop ÷ formula", "shared bytes a pair",
              "L2 bytes a pair"]  # fmt: skip
    rewrite(page, "loop", table(header, [*peers.loops(counts)]))
    header = ["(d, dv)", *(f"S = {s // 1024}k" for s in SEQLENS), "× sm_80's kernel, 16k", "goal"]
    rewrite(page, "speed", table(header, [*peers.speeds(counts)]))
    header = ["ours × theirs", "flop", "full, 2k", "16k", "causal, 2k", "16k"]
    rewrite(page, "peers", table(header, [*peers.against_peers(counts)]))
