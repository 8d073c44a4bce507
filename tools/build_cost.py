"""What the build costs: time, memory of the compilers, size of each object and of the wheel.

    python tools/build_cost.py                       # a wheel from nothing, in a scratch folder
    python tools/build_cost.py --only sm80/fwd_d64   # one file of csrc/cuda
    python tools/build_cost.py --logs                # what the last build of this checkout logged

Compilers are watched from outside. A file's seconds are those from its first process to its last;
its memory is the largest sum of their resident sets, with shared pages counted twice. The exit
status is 1 if the whole build misses one of its goals, --minutes and --megabytes.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread

import build_cuda
import psutil
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent

INTERVAL = 0.05  # seconds between two looks
MIB = 2**20
IGNORED = shutil.ignore_patterns(
    ".git", "build", "dist", "*.so", "*.egg-info", ".*_cache", ".venv*"
)


@dataclass
class Cost:
    """Of one source file, or of all together."""

    file: str
    seconds: float | None = None
    peak_mib: float | None = None
    object_mb: float | None = None


class Watch:
    """The compilers below this process, by the source file that their command line names.

    A compiler's own processes have temporary names on theirs: they belong to the file of the
    process that started them.
    """

    def __init__(self, sources: list[str]) -> None:
        paths = "|".join(map(re.escape, sources))
        self._pattern = re.compile(rf"(?:^|[/ ])({paths})(?= |$)")
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._peak: dict[str, int] = defaultdict(int)
        self.peak = 0  # bytes, of all compilers at once

    def during(self, run: Callable[[], object]) -> float:
        """Seconds that run took."""
        stop = Event()
        watcher = Thread(target=self._watch, args=(stop,))
        watcher.start()
        begin = time.monotonic()
        try:
            run()
        finally:
            stop.set()
            watcher.join()
        return time.monotonic() - begin

    def cost(self, source: str) -> Cost:
        if source not in self._seen:
            return Cost(source)
        seen = self._seen[source]
        return Cost(source, seen[-1] - seen[0] + INTERVAL, self._peak[source] / MIB)

    def _watch(self, stop: Event) -> None:
        while not stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        now, by_file = time.monotonic(), defaultdict[str, int](int)
        file_of: dict[int, str] = {}  # by process; a parent comes before its children
        for process in psutil.Process().children(recursive=True):
            try:
                found = self._pattern.search(" ".join(process.cmdline()))
                file = found[1] if found else file_of.get(process.ppid())
                if file is not None:
                    file_of[process.pid] = file
                    by_file[file] += process.memory_info().rss
            except psutil.Error:  # it has ended meanwhile
                continue
        for name, size in by_file.items():
            self._seen[name].append(now)
            self._peak[name] = max(self._peak[name], size)
        self.peak = max(self.peak, sum(by_file.values()))


def sources() -> list[str]:
    """Every compiled file, as a path in the checkout."""
    found = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def size_of(source: str, build: Path) -> float | None:
    """Of the object, in MB: nvcc's lie below build/cuda, the others where setuptools puts them."""
    path = Path(source).with_suffix(".o")
    if path.is_relative_to("csrc/cuda"):
        objects = [build / "cuda" / path.relative_to("csrc/cuda")]
    else:
        objects = list(build.rglob(str(path)))
    sizes = [found.stat().st_size / 1e6 for found in objects if found.exists()]
    return sizes[0] if sizes else None


def whole(scratch: Path) -> tuple[list[Cost], float, float]:
    """A wheel of a fresh copy: each file and all of it; seconds; the wheel's MB."""
    copy = scratch / "copy"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    watch = Watch(sources())
    seconds = watch.during(
        lambda: subprocess.run([*command, "--wheel-dir", str(scratch), "."], cwd=copy, check=True)
    )
    costs = [watch.cost(source) for source in sources()]
    for cost in costs:
        cost.object_mb = size_of(cost.file, copy / "build")
    (wheel,) = scratch.glob("*.whl")
    costs.append(Cost("all", seconds, watch.peak / MIB))
    return costs, seconds, wheel.stat().st_size / 1e6


def single(name: str, scratch: Path) -> Cost:
    """One file of csrc/cuda, as the build compiles it."""
    found = [p for p in build_cuda.sources() if p.with_suffix("") == build_cuda.SOURCES / name]
    if not found:
        raise SystemExit(f"--only {name}: no such file in this build, expected one of "
                         f"{', '.join(map(_name, build_cuda.sources()))}")  # fmt: skip
    build_cuda.OBJECTS = scratch / "cuda"
    file = str(found[0].relative_to(ROOT))
    watch, toolkit = Watch([file]), build_cuda.Toolkit()
    watch.during(lambda: toolkit.compile(found[0]))
    cost = watch.cost(file)
    cost.object_mb = size_of(file, scratch)
    return cost


def _name(source: Path) -> str:
    return str(source.relative_to(build_cuda.SOURCES).with_suffix(""))


def logged() -> list[Cost]:
    """From the logs next to the objects of this checkout, which do not record memory."""
    costs = []
    for source in build_cuda.sources():
        log = build_cuda.log_of(source)
        if log.exists():
            seconds, size = re.findall(r"compiled in (.*) s, (.*) MB", log.read_text())[-1]
            file = str(source.relative_to(ROOT))
            costs.append(Cost(file, float(seconds), object_mb=float(size)))
    return costs


def show(costs: list[Cost]) -> None:
    header = ["file", "seconds", "peak MiB", "object MB"]
    lines = [list(asdict(cost).values()) for cost in costs]
    print(tabulate(lines, header, tablefmt="github", floatfmt=("", ".1f", ".0f", ".2f")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="a path below csrc/cuda, without its suffix")
    parser.add_argument("--logs", action="store_true")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="goal for the whole build")
    parser.add_argument("--megabytes", type=float, default=16.0, help="goal for the wheel")
    args = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        if args.logs:
            costs = logged()
        elif args.only:
            costs = [single(args.only, Path(folder))]
        else:
            costs, seconds, wheel = whole(Path(folder))
            missed = seconds > 60 * args.minutes or wheel > args.megabytes
            print(f"wheel {wheel:.2f} MB (goal {args.megabytes:g}), "
                  f"{seconds / 60:.1f} minutes (goal {args.minutes:g}), "
                  f"{os.environ.get('MAX_JOBS', os.cpu_count())} compilers at once")  # fmt: skip
    show(costs)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(costs[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(cost) for cost in costs)
    sys.exit(missed)


if __name__ == "__main__":
    main()
