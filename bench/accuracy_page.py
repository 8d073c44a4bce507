"""Draw docs/accuracy.svg from the CSV of accuracy.py and rewrite the tables in docs/numerics.md.

python bench/accuracy.py --simulate --csv docs/accuracy.csv
python bench/accuracy_page.py
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from accuracy import Error
from matplotlib.axes import Axes
from page import rewrite, table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LABELS = {
    "cpu": "diffattn_cuda, CPU",
    "cuda": "diffattn_cuda, CUDA",
    "two calls": "two calls",
    "sdpa2": "2 × SDPA",
    "sdpa4": "4 × SDPA",
    "eager": "eager",
}
MARKERS = {"cpu": "o", "cuda": "D", "two calls": "s", "sdpa2": "^", "sdpa4": "v", "eager": "x"}
ONE_ROUNDING = 1.65e-3  # of normal numbers to bf16, relative


def read(path: Path) -> list[Error]:
    with path.open(newline="") as file:
        return [
            Error(r["data"], float(r["lam"]), r["way"], r["tensor"], float(r["error"]))
            for r in csv.DictReader(file)
        ]


def errors_table(rows: list[Error], tensors: tuple[str, str]) -> str:
    found = {(r.data, r.lam, r.way, r.tensor): 1e3 * r.error for r in rows}
    lines = [
        [data, f"{lam:g}"]
        + [", ".join(f"{found[data, lam, way, t]:.3g}" for t in tensors) for way in LABELS]
        for data, lam in dict.fromkeys((r.data, r.lam) for r in rows)
    ]
    return table([", ".join(tensors), "λ", *LABELS.values()], lines)


def draw(rows: list[Error], out: Path) -> None:
    """Two panels: the output, and dV, where the subtraction cancels too."""
    plt.rcParams.update({"svg.hashsalt": "diffattn", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for ax, tensor in zip(axes, ("out", "dv"), strict=True):
        panel(ax, [r for r in rows if r.tensor == tensor])
        ax.set_title({"out": "output", "dv": "dV"}[tensor])
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    fig.savefig(out, metadata={"Date": None})


def panel(ax: Axes, rows: list[Error]) -> None:
    places = {place: -i for i, place in enumerate(dict.fromkeys((r.data, r.lam) for r in rows))}
    for way, label in LABELS.items():
        mine = [r for r in rows if r.way == way]
        ax.plot([r.error for r in mine], [places[r.data, r.lam] for r in mine], MARKERS[way],
                label=label, alpha=0.8, ms=5)  # fmt: skip
    ax.axvline(ONE_ROUNDING, color="0.6", ls="--", lw=1, label="one bf16 rounding", zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel("relative error")
    ax.set_yticks(list(places.values()), [f"{data}, λ = {lam:g}" for data, lam in places])
    ax.grid(axis="y", color="0.9", zorder=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=DOCS / "accuracy.csv")
    parser.add_argument("--svg", type=Path, default=DOCS / "accuracy.svg")
    parser.add_argument("--page", type=Path, default=DOCS / "numerics.md")
    args = parser.parse_args()
    rows = read(args.csv)
    draw(rows, args.svg)
    rewrite(args.page, "out and dv", errors_table(rows, ("out", "dv")))
    rewrite(args.page, "dq and dk", errors_table(rows, ("dq", "dk")))


if __name__ == "__main__":
    main()
