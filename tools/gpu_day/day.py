"""`make gpu`: the self-test, the suite by priority, the speed, and a page after each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import page, steps, suite, tables
from .place import ROOT, Place
from .steps import Done, Step

SELFTEST_LIMIT = 240.0  # seconds; 20 are usual, but a driver that compiles PTX needs minutes
SPEED_GRACE = 180.0  # for the last problem, whose peers may have to be compiled


@dataclass(frozen=True)
class Times:
    """Minutes for the steps that fill the time they are given."""

    tests: float
    speed: float


def selftest(place: Place) -> Step:
    kind = "cpu" if place.device == "cpu" else "cuda"
    command = steps.python("-m", "diffattn_cuda", "--devices", kind, "--json")
    return Step("selftest", command, SELFTEST_LIMIT, "every kernel against fp64")


def speed(place: Place, minutes: float) -> Step:
    command = steps.python(
        ROOT / "bench" / "speed.py", "--device", place.device, "--minutes", f"{minutes:g}",
        "--csv", place.out / "speed.csv",
    )  # fmt: skip
    command += sweeps(place.device)
    return Step("speed", command, 60 * minutes + SPEED_GRACE, "ours and every peer that is here")


def sweeps(device: str) -> list[str]:
    """The problems that a GPU is timed at; on a CPU, for rehearsal, short ones."""
    if device == "cuda":
        return ["--config", str(ROOT / "tools" / "gpu_day" / "speed.toml")]
    return ["--seqlens", "64", "--rounds", "3", "--direction", "fwd", "fwdbwd", "decode"]


def plan(place: Place, times: Times) -> list[Step]:
    """For --dry-run."""
    return [selftest(place), suite.step(place, 0, times.tests), speed(place, times.speed)]


def run(place: Place, times: Times, runner: Callable[..., Done] = steps.run) -> bool:
    """True if nothing failed. The page is there after each step: the next may hang the machine."""
    day = page.Day(place.device)
    environment = place.environment()
    for old in ("selftest.log", "tests.log", "speed.log", "speed.csv"):
        (place.out / old).unlink(missing_ok=True)

    done = runner(selftest(place), place.out, environment)
    day.steps.append(done)
    day.report = _json(done.log)
    tables.write(place.out / "selftest.csv", tables.selftest(day.report))
    page.write(place.out, day)

    day.suite = suite.run(place, times.tests, runner)
    tables.write(place.out / "tests.csv", tables.tests(day.suite))
    page.write(place.out, day)

    done = runner(speed(place, times.speed), place.out, environment)
    day.steps.append(done)
    day.speed = tables.read(place.out / "speed.csv")
    page.write(place.out, day)
    print(f"\n{place.out / page.NAME}", flush=True)
    return day.succeeded


def _json(log: Path) -> dict[str, Any]:
    """The self-test's report; torch may have said something before it."""
    text = log.read_text()
    start = text.find("\n{") + 1 if not text.startswith("{") else 0
    try:
        report = json.loads(text[start:])
    except json.JSONDecodeError:
        return {}
    return report if isinstance(report, dict) else {}
