"""`make gpu-sanitize`: compute-sanitizer's four tools on the core set."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from . import steps
from .place import ROOT, Place
from .steps import Done, Step

TOOLS = {
    "memcheck": "accesses outside of allocations",
    "racecheck": "shared memory that two threads touch without a barrier between",
    "initcheck": "device memory that is read before it is written",
    "synccheck": "barriers that not all threads reach",
}
LIMIT = 900.0  # seconds, for each
FOUND = 99  # exit code
MOST_SHOWN = 5


@dataclass(frozen=True)
class Verdict:
    tool: str
    errors: int | None  # None: it did not get to its summary
    messages: list[str]  # the first ones

    @property
    def clean(self) -> bool:
        return self.errors == 0


def step(tool: str, sanitizer: str) -> Step:
    command = [
        sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20",
        *steps.python(ROOT / "tools" / "gpu_day" / "cases.py", "core"),
    ]  # fmt: skip
    return Step(tool, command, LIMIT, TOOLS[tool])


def run(
    place: Place, sanitizer: str, runner: Callable[..., Done] = steps.run
) -> dict[str, Verdict]:
    # Each tensor is an allocation of its own, so that an access next to it is outside of all.
    environment = place.environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    verdicts = {}
    for tool in TOOLS:
        done = runner(step(tool, sanitizer), place.out, environment)
        verdicts[tool] = read(tool, done.log.read_text(), done.code)
    return verdicts


def read(tool: str, text: str, code: int) -> Verdict:
    """The summary, and the first line of each report. An error of the program itself counts too."""
    lines = [line.removeprefix("=========") for line in text.splitlines() if line[:9] == "=" * 9]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "")
    counts = [int(n) for n in re.findall(r"(\d+) (?:errors?|hazards?|warnings?)\b", summary)]
    heads = [line.strip() for line in lines if re.match(r" \S", line) and "SUMMARY" not in line]
    messages = [line for line in heads if not line.startswith("COMPUTE-SANITIZER")]
    if not counts:
        return Verdict(tool, None, messages[:MOST_SHOWN] or text.strip().splitlines()[-1:])
    errors = max(counts)
    if errors == 0 and code != 0:
        return Verdict(tool, None, [f"exit code {code}", *text.strip().splitlines()[-1:]])
    return Verdict(tool, errors, messages[:MOST_SHOWN])
