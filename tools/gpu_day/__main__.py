"""The commands behind `make gpu`, `make gpu-sanitize` and `make gpu-counters`; see docs/gpu.md.

PYTHONPATH=tools python -m gpu_day run --minutes 8 --speed-minutes 8 --out gpu_out
PYTHONPATH=tools python -m gpu_day sanitize
PYTHONPATH=tools python -m gpu_day counters
PYTHONPATH=tools python -m gpu_day run --dry-run             # what would run, and for how long
PYTHONPATH=tools python -m gpu_day run --device cpu --minutes 1 --speed-minutes 1    # a rehearsal
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import counters, day, page, place, sanitize, tables
from .cases import COUNTED
from .steps import Step


def main(command_line: list[str]) -> int:
    args = parse(command_line)
    if args.dry_run:
        return show(args)
    where = place.prepare(args.wheel, args.out, args.device)
    if args.what == "run":
        return 0 if day.run(where, day.Times(args.minutes, args.speed_minutes)) else 1
    return sanitized(where) if args.what == "sanitize" else counted(where)


def parse(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gpu_day",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", choices=["run", "sanitize", "counters"])
    add("--wheel", type=Path, help="default: the newest of dist/")
    add("--out", type=Path, default=Path("gpu_out"))
    add("--minutes", type=float, default=8.0, help="for the tests")
    add("--speed-minutes", type=float, default=8.0, help="for the speed")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal of `run`")
    add("--dry-run", action="store_true", help="only list what would run, and for how long")
    return parser.parse_args(command_line)


def show(args: argparse.Namespace) -> int:
    steps = planned(args)
    for step in steps:
        print(step)
    print(f"{len(steps)} steps, at most {sum(step.limit for step in steps) / 60:.0f} minutes")
    return 0


def planned(args: argparse.Namespace) -> list[Step]:
    where = place.Place(args.out.resolve() / "package", args.out.resolve(), args.device)
    if args.what == "run":
        return day.plan(where, day.Times(args.minutes, args.speed_minutes))
    if args.what == "sanitize":
        return [sanitize.step(tool, "compute-sanitizer") for tool in sanitize.TOOLS]
    metrics = {figure: names[0] for figure, names in counters.METRICS.items()}
    return [counters.step(case, "ncu", metrics) for case in COUNTED]


def sanitized(where: place.Place) -> int:
    verdicts = sanitize.run(where, place.find_tool("compute-sanitizer"))
    report(where, "sanitizer", tables.sanitizer(verdicts), page.sanitizer(verdicts))
    return 0 if all(v.clean for v in verdicts.values()) else 1


def counted(where: place.Place) -> int:
    ncu = place.find_tool("ncu")
    found = counters.run(where, ncu, counters.available(ncu))
    report(where, "counters", tables.ratios(found), page.ratios(found))
    return 0 if all(r.counted is not None for r in found) else 1


def report(where: place.Place, name: str, rows: list[tables.Row], lines: list[str]) -> None:
    tables.write(where.out / f"{name}.csv", rows)
    (where.out / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
