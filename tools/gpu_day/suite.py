"""The suite on the device, in as many processes as it takes: a crash or a hang costs one test."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from . import steps
from .deadline import events
from .place import ROOT, Place
from .steps import Done, Step

HANG = 120.0  # seconds that one test may take
GRACE = 60.0  # that a session may take beyond its time: to import, to end the last test
# pytest's own exit codes that end a session in order: all passed, some failed, none were left.
IN_ORDER = (0, 1, 5)
MOST_DEATHS = 10


@dataclass
class Suite:
    """What became of the tests, by id."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # and why
    skipped: list[str] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    ended: str = ""  # why, where it did not end in order


def step(place: Place, until: float, minutes: float) -> Step:
    command = steps.python(
        "-m", "pytest", "-q", "-p", "gpu_day.deadline", "-p", "no:cacheprovider",
        "--continue-on-collection-errors",
        "--rootdir", ROOT, "-c", ROOT / "pyproject.toml",
        "--until", f"{until:.0f}", "--record", place.out / "tests.jsonl",
        "--device", place.device, *files(),
    )  # fmt: skip
    return Step("tests", command, 60 * minutes + GRACE, "the suite on the device, by priority")


def files() -> list[Path]:
    """Those that use the device: others may import or test what is not there."""
    found = sorted((ROOT / "tests").glob("test_*.py"))
    asking = [path for path in found if "impl: Impl" in path.read_text()]
    return [path for path in asking if not path.name.startswith(("test_sim", "test_bench"))]


def run(place: Place, minutes: float, runner: Callable[..., Done] = steps.run) -> Suite:
    until, record = time.time() + 60 * minutes, place.out / "tests.jsonl"
    record.unlink(missing_ok=True)
    deaths = 0
    while True:
        now = time.time()
        session = step(place, until, max(0.0, until - now) / 60)
        done = runner(session, place.out, place.environment(), partial(hangs, record, now))
        suite = read(record)
        if done.code in IN_ORDER or time.time() >= until:
            break
        deaths += 1
        if deaths == MOST_DEATHS or not suite.seconds:
            suite.ended = f"given up after {deaths} sessions that did not end in order: {done.log}"
            break
    if not suite.seconds and not suite.ended:
        suite.ended = f"no test ran in {minutes:g} minutes: {done.log}"
    return suite


def hangs(record: Path, since: float) -> bool:
    """Whether the test that runs now, in a session since then, has run for too long."""
    last = (events(record) or [{}])[-1]
    return "begin" in last and last["at"] >= since and time.time() - last["at"] > HANG


def read(record: Path) -> Suite:
    suite, begun = Suite(), {}
    collected: dict[str, None] = {}
    for event in events(record):
        if "collected" in event:
            collected |= dict.fromkeys(event["collected"])
        elif "broken" in event:  # a file that could not be imported
            _note(suite, event["broken"], "failed", event["message"], 0.0)
        elif "begin" in event:
            begun[event["begin"]] = event["at"]
        elif "end" in event:
            _note(suite, event["end"], event["outcome"], event["message"], event["seconds"])
    for name in begun:
        if name not in suite.seconds:
            why = f"the process died in it, or had no answer for {HANG:.0f} s"
            _note(suite, name, "failed", why, 0.0)
    suite.not_reached = [name for name in collected if name not in begun]
    return suite


def _note(suite: Suite, name: str, outcome: str, message: str, seconds: float) -> None:
    suite.seconds[name] = seconds
    if outcome == "failed":
        suite.failed[name] = message
    else:
        (suite.passed if outcome == "passed" else suite.skipped).append(name)
