"""`make gpu-counters`: ncu's counts of each kernel, the simulator's, and their ratio.

The simulator's are recorded beforehand, on a machine that can build: `make counts` writes
tools/gpu_day/simulated.csv.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import steps
from .cases import COUNTED, KERNELS
from .place import ROOT, Place
from .steps import Done, Step

SIMULATED = Path(__file__).with_name("simulated.csv")
LIMIT = 180.0  # seconds, for each case
# By figure: ncu's metrics, the first that this GPU has. HMMA is the tensor core's only use here.
METRICS = {
    "mma": ("sm__inst_executed_pipe_tensor.sum", "sm__inst_executed_pipe_tensor_op_hmma.sum",
            "smsp__inst_executed_pipe_tensor.sum"),
    "shared_wavefronts": ("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",),
    "l2_bytes": ("lts__t_bytes.sum",),
    "dram_bytes": ("dram__bytes.sum",),
}  # fmt: skip

Counts = dict[tuple[str, str], dict[str, float]]  # by case and kernel: figures


@dataclass(frozen=True)
class Ratio:
    case: str
    kernel: str
    figure: str
    simulated: float
    counted: float | None  # None: ncu has no such launch

    @property
    def ratio(self) -> float | None:
        return self.counted / self.simulated if self.counted is not None else None


def step(case: str, ncu: str, metrics: dict[str, str]) -> Step:
    command = [
        ncu, "--csv", "--print-units", "base", "--print-kernel-base", "function",
        "--kernel-name", f"regex:^({'|'.join(KERNELS)})$", "--metrics", ",".join(metrics.values()),
        *steps.python(ROOT / "tools" / "gpu_day" / "cases.py", case),
    ]  # fmt: skip
    return Step(case, command, LIMIT, "the kernels of this problem under ncu")


def available(ncu: str) -> dict[str, str]:
    """Which metric stands for each figure on this GPU."""
    asked = subprocess.run([ncu, "--query-metrics"], capture_output=True, text=True)
    return choose(asked.stdout)


def choose(listing: str) -> dict[str, str]:
    """From ncu's list, which names metrics without the suffix that says what to do with them."""
    names = {line.split()[0] for line in listing.splitlines() if line.strip()}
    chosen = {}
    for figure, candidates in METRICS.items():
        there = [metric for metric in candidates if metric.removesuffix(".sum") in names]
        if not there:
            raise SystemExit(f"ncu --query-metrics has none of {', '.join(candidates)}")
        chosen[figure] = there[0]
    return chosen


def run(
    place: Place, ncu: str, metrics: dict[str, str], runner: Callable[..., Done] = steps.run
) -> list[Ratio]:
    counted: Counts = {}
    for case in COUNTED:
        done = runner(step(case, ncu, metrics), place.out, place.environment())
        counted |= read(case, done.log.read_text(), metrics)
    return compare(load(SIMULATED), counted)


def read(case: str, text: str, metrics: dict[str, str]) -> Counts:
    """ncu's CSV: a line for each launch and metric, after lines of its own and of the program."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    figures = {metric: figure for figure, metric in metrics.items()}
    counts: Counts = {}
    for line in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if (figure := figures.get(line["Metric Name"])) is not None:
            values = counts.setdefault((case, line["Kernel Name"]), {})
            number = float(line["Metric Value"].replace(",", ""))
            values[figure] = values.get(figure, 0.0) + number
    return counts


def compare(simulated: Counts, counted: Counts) -> list[Ratio]:
    return [
        Ratio(case, kernel, figure, value, counted.get((case, kernel), {}).get(figure))
        for (case, kernel), figures in simulated.items()
        for figure, value in figures.items()
        if value
    ]


def load(path: Path) -> Counts:
    with path.open(newline="") as file:
        return {
            (line["case"], line["kernel"]): {figure: float(line[figure]) for figure in METRICS}
            for line in csv.DictReader(file)
        }


def save(path: Path, counts: Counts) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "kernel", *METRICS])
        for (case, kernel), figures in counts.items():
            writer.writerow([case, kernel, *(f"{figures[figure]:.0f}" for figure in METRICS)])
