"""Draw docs/speed.svg from the CSV of speed.py and rewrite the table in README.md.

python bench/speed.py --direction fwd fwdbwd --dtype fp32 bf16 --csv docs/speed.csv
python bench/plot.py docs/speed.csv
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from page import rewrite, table
from problem import Problem

ROOT = Path(__file__).resolve().parent.parent
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
        """Useful flop a second: the fused count for every peer, so that the lines compare time."""
        return self.problem.flop / self.ms / 1e6


def read(paths: list[Path]) -> tuple[list[Measured], dict[str, str]]:
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


def draw(rows: list[Measured], place: dict[str, str], out: Path) -> None:
    """One panel for each direction and dtype: rate over sequence length; d = 64, causal."""
    threads = max(r.threads for r in rows)
    rows = [r for r in rows if r.problem.direction != "decode" and r.threads == threads]
    rows = [r for r in rows if r.problem.headdim == 64 and r.problem.causal]
    panels: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for r in rows:
        panels[r.problem.direction, r.problem.dtype].append(r)
    plt.rcParams.update({"svg.hashsalt": "diffattn", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    fig, axes = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.1), squeeze=False)
    for ax, ((direction, dtype), part) in zip(axes[0], panels.items(), strict=True):
        panel(ax, part)
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


def panel(ax: Axes, rows: list[Measured]) -> None:
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
    """A line a problem: ours in ms, then how many times faster it is than each peer."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", nargs="+", type=Path)
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "speed.svg")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    rows, place = read(args.csv)
    draw(rows, place, args.svg)
    rewrite(args.readme, "speed table", speed_table(rows))


if __name__ == "__main__":
    main()
