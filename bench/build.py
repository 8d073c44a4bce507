"""What the build costs: time, memory of the compilers, size of each object and of the wheel.

    python bench/build.py                  # a wheel from nothing, in a scratch folder: minutes
    python bench/build.py --only fwd_d64   # one file of csrc/cuda
    python bench/build.py --logs           # what the last build of this checkout wrote down

Compilers are watched from outside: a file's seconds are from its first process seen to its last,
its memory is the largest sum of their resident sets (shared pages counted twice). With the goals
of --minutes and --megabytes the exit status is 1 if one is missed.
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

import psutil
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import build_cuda  # noqa: E402

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
    """The compilers below this process, by the source file that their command line names."""

    def __init__(self, sources: list[str]) -> None:
        names = sorted({Path(source).stem for source in sources}, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, names))})\.\w+")
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
        name = Path(source).stem
        if name not in self._seen:
            return Cost(source)
        seen = self._seen[name]
        return Cost(source, seen[-1] - seen[0] + INTERVAL, self._peak[name] / MIB)

    def _watch(self, stop: Event) -> None:
        while not stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        now, by_file = time.monotonic(), defaultdict[str, int](int)
        for process in psutil.Process().children(recursive=True):
            try:
                command = process.cmdline()
                found = self._pattern.search(" ".join(command))
                if found and "-shared" not in command:  # the linker names every file
                    by_file[found[1]] += process.memory_info().rss
            except psutil.Error:  # it ended meanwhile
                continue
        for name, size in by_file.items():
            self._seen[name].append(now)
            self._peak[name] = max(self._peak[name], size)
        self.peak = max(self.peak, sum(by_file.values()))


def sources() -> list[str]:
    """Every compiled file, as a path in the checkout; their stems differ."""
    found = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def size_of(source: str, build: Path) -> float | None:
    """Of the object, in MB: nvcc's lie in build/cuda, the others where setuptools puts them."""
    objects = [path for path in build.rglob("*.o") if path.name.split(".")[0] == Path(source).stem]
    return objects[0].stat().st_size / 1e6 if objects else None


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
    build_cuda.OBJECTS = scratch
    (source,) = (path for path in build_cuda.sources() if path.stem == name)
    watch, toolkit = Watch([source.name]), build_cuda.Toolkit()
    watch.during(lambda: toolkit.compile(source))
    cost = watch.cost(str(source.relative_to(ROOT)))
    cost.object_mb = size_of(source.name, scratch)
    return cost


def logged() -> list[Cost]:
    """From the logs beside the objects of this checkout; they know no memory."""
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
    parser.add_argument("--only", help="a file of csrc/cuda, without its suffix")
    parser.add_argument("--logs", action="store_true")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="goal for the whole build")
    parser.add_argument("--megabytes", type=float, default=12.0, help="goal for the wheel")
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
