"""Rows of results: what a row holds, how it is printed, and how it is written as CSV."""

from __future__ import annotations

import csv
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from diffattn_cuda import _cpu

from .problem import Problem

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One peer on one problem. None where a column does not apply to the row."""

    problem: Problem
    threads: int
    peer: str
    rounds: int
    ms: float
    ms_p25: float
    ms_p75: float
    ours_speedup: float | None  # this row's median / ours': how much faster ours is
    gflops: (
        float | None
    )  # ours: 8d flop per visible pair forward, 28d with backward; and torch.mm's
    mm_percent: float | None  # of torch.mm's rate in the same rounds
    gbytes: float | None  # decode: cache bytes per second; and a large read's
    bandwidth_percent: float | None  # of that read's in the same rounds


COLUMNS = ("peer", "rounds", "ms", "p25–p75", "ours ×", "GF/s", "% mm", "GB/s", "% bw")


def cells(row: Row) -> tuple[str, ...]:
    """A row's printed columns."""

    def number(x: float | None, digits: int) -> str:
        return "" if x is None else f"{x:.{digits}f}"

    return (
        row.peer,
        str(row.rounds),
        f"{row.ms:.3f}",
        f"{row.ms_p25:.3f}–{row.ms_p75:.3f}",
        number(row.ours_speedup, 2),
        number(row.gflops, 1),
        number(row.mm_percent, 1),
        number(row.gbytes, 2),
        number(row.bandwidth_percent, 1),
    )


def show(title: str, rows: list[Row]) -> None:
    """Print one problem's table; columns that no row fills are left out."""
    lines = [COLUMNS, *(cells(r) for r in rows)]
    columns = [c for c in zip(*lines, strict=True) if any(c[1:])]
    widths = [max(map(len, c)) for c in columns]
    print(f"\n{title}")
    for line in zip(*columns, strict=True):
        first, *rest = (
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  " + "  ".join([first, *rest]), flush=True)


def write_csv(path: Path, rows: list[Row], command: str) -> None:
    """All rows, a problem's fields spelled out, each with machine, commit and command."""
    place = machine() | {"commit": commit(), "command": command}
    flat = [
        asdict(r.problem) | {f.name: getattr(r, f.name) for f in fields(r)[1:]} | place
        for r in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def machine() -> dict[str, str]:
    """Where the figures were taken."""
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "cpu": _cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "our_isa": _cpu.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured, with a + if the tree had other changes; "" without git."""
    if shutil.which("git") is None:
        return ""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+" if git("status", "--porcelain", "-uno") else ""
    )


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
