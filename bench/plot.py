"""Draw the figures and rewrite the tables of README and docs/ from the files docs/*.csv.

    python bench/plot.py                    # all of them
    python bench/plot.py speed --speed gpu.csv

speed     docs/speed.svg and README's table, from speed.py's CSV
counts    README's table of the CUDA kernels, docs/counts.md and predictions.md, from counts.py's
accuracy  docs/accuracy.svg and the tables of docs/numerics.md, from accuracy.py's
mutants   the table of docs/mutants.md, from tools/mutants.py's
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tools")]

import matplotlib  # noqa: E402

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from accuracy import Error  # noqa: E402
from counting import figures, tables  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from mutation import scores  # noqa: E402
from page import rewrite, table  # noqa: E402
from timing.problem import Problem  # noqa: E402

DOCS, README = ROOT / "docs", ROOT / "README.md"
LABELS = {
    "ours": "diffattn_cuda",
    "sdpa2": "2 × SDPA, V = 2d",
    "sdpa4": "4 × SDPA, V = d",
    "sdpa_hf": "2 × SDPA, as DiffLlama",
    "flex2": "2 × FlexAttention, V = 2d",
    "fa2_4": "4 × FlashAttention-2, V = d",
    "fa2_hf": "2 × FlashAttention-2, as DiffLlama",
    "fa3_2": "2 × FlashAttention-3, V = 2d",
    "fa3_4": "4 × FlashAttention-3, V = d",
    "fa3_hf": "2 × FlashAttention-3, as DiffLlama",
    "flexhead_2": "2 × flex_head_fa, V = 2d",
    "flexhead_4": "4 × flex_head_fa, V = d",
    "eager": "eager PyTorch",
    "torch.mm": "torch.mm",
}
TITLES = {"fwd": "forward", "bwd": "backward", "fwdbwd": "forward + backward", "decode": "decode"}
# Of accuracy.py.
WAYS = {
    "cpu": "diffattn_cuda, CPU",
    "cuda": "diffattn_cuda, CUDA",
    "two calls": "two calls",
    "sdpa2": "2 × SDPA",
    "sdpa4": "4 × SDPA",
    "eager": "eager",
}
MARKERS = {"cpu": "o", "cuda": "D", "two calls": "s", "sdpa2": "^", "sdpa4": "v", "eager": "x"}
ONE_ROUNDING = 1.65e-3  # of normal numbers to bf16, relative


@dataclass(frozen=True)
class Measured:
    """One line of the CSV."""

    problem: Problem
    threads: int
    peer: str
    ms: float
    own_gflops: float | None  # of ours, and of torch.mm
    mm_percent: float | None
    bandwidth_percent: float | None

    @property
    def gflops(self) -> float:
        """Useful flop per second: the fused count for every peer, so lines compare times."""
        return self.problem.flop / self.ms / 1e6


def read_speed(paths: list[Path]) -> tuple[list[Measured], dict[str, str]]:
    """All lines, and the first line as text (it names the machine)."""
    lines = [line for path in paths for line in csv.DictReader(path.open())]
    return [parse(line) for line in lines], lines[0]


def parse(line: dict[str, str]) -> Measured:
    sizes = {
        n: int(line[n]) for n in ("batch", "nheads", "nheads_k", "seqlen_q", "seqlen_k", "headdim")
    }
    causal = line["causal"] == "True"
    problem = Problem(
        line["direction"], line["dtype"], causal=causal, device=line["device"], **sizes
    )
    rates = (float(line[n]) if line[n] else None
             for n in ("gflops", "mm_percent", "bandwidth_percent"))  # fmt: skip
    return Measured(problem, int(line["threads"]), line["peer"], float(line["ms"]), *rates)


def use_style() -> None:
    """The same bytes for the same figures, in one style."""
    plt.rcParams.update({"svg.hashsalt": "diffattn", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip


def draw_speed(rows: list[Measured], place: dict[str, str], out: Path) -> None:
    """One panel for each direction and dtype: rate over sequence length; d = 64, causal."""
    threads = max(r.threads for r in rows)
    rows = [r for r in rows if r.problem.direction != "decode" and r.threads == threads]
    rows = [r for r in rows if r.problem.headdim == 64 and r.problem.causal]
    panels: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for r in rows:
        panels[r.problem.direction, r.problem.dtype].append(r)
    use_style()
    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.1), squeeze=False)
    for ax, ((direction, dtype), part) in zip(axes[0], panels.items(), strict=True):
        speed_panel(ax, part)
        ax.set_title(f"{TITLES[direction]}, {dtype}")
    axes[0][0].set_ylabel("GFLOP/s (fused count)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    p = rows[0].problem
    batch = f"B = {p.batch}" if len({r.problem.batch for r in rows}) == 1 else "equal tokens"
    where = f"{place['cpu']} ({place['isa']}), {threads} threads"
    command = f"\n{place['command']}" if place.get("command") else ""
    fig.suptitle(f"{batch}, {p.nheads} heads, d = 64, causal · {place.get('gpu') or where} · "
                 f"torch {place['torch']}{command}", fontsize=9)  # fmt: skip
    fig.tight_layout(rect=(0, 0.07, 1, 1))
    fig.savefig(out, metadata={"Date": None})


def speed_panel(ax: Axes, rows: list[Measured]) -> None:
    """Lines of one direction and dtype; torch.mm is the dashed ceiling."""
    for i, (peer, label) in enumerate(LABELS.items()):
        mine = sorted((r for r in rows if r.peer == peer), key=lambda r: r.problem.seqlen_k)
        lengths = [r.problem.seqlen_k for r in mine]
        if peer == "torch.mm":
            ceiling = [mm_gflops(rows, s) for s in lengths]
            ax.plot(lengths, ceiling, "--", color="0.6", label=label)
        elif mine:
            bold = 2.5 if peer == "ours" else 1.2
            ax.plot(
                lengths, [r.gflops for r in mine], "o-", ms=3, lw=bold, color=f"C{i}", label=label
            )
    ax.set_xscale("log", base=2)
    ticks = sorted({r.problem.seqlen_k for r in rows})
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xlabel("sequence length")
    ax.set_ylim(bottom=0)


def mm_gflops(rows: list[Measured], seqlen: int) -> float:
    """The matrix rate measured in the same rounds, from the line of torch.mm."""
    (mm,) = (r for r in rows if r.peer == "torch.mm" and r.problem.seqlen_k == seqlen)
    assert mm.own_gflops is not None
    return mm.own_gflops


def speed_table(rows: list[Measured]) -> str:
    """One line per problem: ours in ms, then how many times faster it is than each peer."""
    peers = [p for p in LABELS if p not in ("ours", "torch.mm") and any(r.peer == p for r in rows)]
    header = ["", "S", "d", "mask", "threads", "ours, ms", "of torch.mm"]
    lines = []
    groups: dict[tuple[Problem, int], dict[str, Measured]] = defaultdict(dict)
    for r in rows:
        groups[r.problem, r.threads][r.peer] = r
    for (p, threads), group in groups.items():
        if (mine := group.get("ours")) is None:
            continue
        faster = (f"{group[n].ms / mine.ms:.1f}" if n in group else "" for n in peers)
        lines.append([f"{TITLES[p.direction]} {p.dtype}", str(p.seqlen_k), str(p.headdim),
                      "causal" if p.causal else "full", str(threads), f"{mine.ms:.2f}",
                      f"{mine.mm_percent:.0f}%" if mine.mm_percent else "", *faster])  # fmt: skip
    return table([*header, *(f"× {LABELS[p]}" for p in peers)], lines)


def read_errors(path: Path) -> list[Error]:
    with path.open(newline="") as file:
        return [
            Error(r["data"], float(r["lam"]), r["way"], r["tensor"], float(r["error"]))
            for r in csv.DictReader(file)
        ]


def errors_table(rows: list[Error], tensors: tuple[str, str]) -> str:
    found = {(r.data, r.lam, r.way, r.tensor): 1e3 * r.error for r in rows}
    lines = [
        [data, f"{lam:g}"]
        + [", ".join(f"{found[data, lam, way, t]:.3g}" for t in tensors) for way in WAYS]
        for data, lam in dict.fromkeys((r.data, r.lam) for r in rows)
    ]
    return table([", ".join(tensors), "λ", *WAYS.values()], lines)


def draw_errors(rows: list[Error], out: Path) -> None:
    """Two panels: the output, and dV, where the subtraction cancels too."""
    use_style()
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for ax, tensor in zip(axes, ("out", "dv"), strict=True):
        errors_panel(ax, [r for r in rows if r.tensor == tensor])
        ax.set_title({"out": "output", "dv": "dV"}[tensor])
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    fig.savefig(out, metadata={"Date": None})


def errors_panel(ax: Axes, rows: list[Error]) -> None:
    places = {place: -i for i, place in enumerate(dict.fromkeys((r.data, r.lam) for r in rows))}
    for way, label in WAYS.items():
        mine = [r for r in rows if r.way == way]
        ax.plot([r.error for r in mine], [places[r.data, r.lam] for r in mine], MARKERS[way],
                label=label, alpha=0.8, ms=5)  # fmt: skip
    ax.axvline(ONE_ROUNDING, color="0.6", ls="--", lw=1, label="one bf16 rounding", zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel("relative error")
    ax.set_yticks(list(places.values()), [f"{data}, λ = {lam:g}" for data, lam in places])
    ax.grid(axis="y", color="0.9", zorder=0)


def write_speed(csvs: list[Path], docs: Path = DOCS, readme: Path = README) -> None:
    rows, place = read_speed(csvs)
    draw_speed(rows, place, docs / "speed.svg")
    rewrite(readme, "speed table", speed_table(rows))


def write_accuracy(docs: Path = DOCS) -> None:
    rows = read_errors(docs / "accuracy.csv")
    draw_errors(rows, docs / "accuracy.svg")
    page = docs / "numerics.md"
    rewrite(page, "out and dv", errors_table(rows, ("out", "dv")))
    rewrite(page, "dq and dk", errors_table(rows, ("dq", "dk")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = ("speed", "counts", "accuracy", "mutants")
    parser.add_argument("what", nargs="*", help=f"of {', '.join(what)}; default: all")
    parser.add_argument("--speed", nargs="+", type=Path, default=[DOCS / "speed.csv"])
    args = parser.parse_args()
    if unknown := set(args.what) - set(what):
        parser.error(f"nothing to draw of {', '.join(unknown)}; there are {', '.join(what)}")
    asked = args.what or what
    if "speed" in asked:
        write_speed(args.speed)
    if "counts" in asked:
        tables.write(README, DOCS, figures.read(DOCS / "counts.csv"))
    if "accuracy" in asked:
        write_accuracy()
    if "mutants" in asked:
        scores.show(DOCS / "mutants.md", scores.read(DOCS / "mutants.csv"))


if __name__ == "__main__":
    main()
