"""The day's results as rows of CSV: the self-test, the tests, and the tools' verdicts."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .counters import Ratio
from .sanitize import Verdict
from .suite import Suite

Row = dict[str, Any]


def write(path: Path, rows: Iterable[Row]) -> None:
    """Nothing where there is no row."""
    listed = list(rows)
    if not listed:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(listed)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def selftest(report: dict[str, Any]) -> list[Row]:
    return [
        {"device": device, **check.pop("check"), **check}
        for device, checks in report.get("checks", {}).items()
        for check in (dict(c) for c in checks)
    ]


def tests(suite: Suite) -> list[Row]:
    """What failed comes first."""
    outcomes = (
        *((name, "failed", message) for name, message in suite.failed.items()),
        *((name, "passed", "") for name in suite.passed),
        *((name, "skipped", "") for name in suite.skipped),
        *((name, "not reached", "") for name in suite.not_reached),
    )
    return [
        {"test": name, "outcome": outcome, "seconds": f"{suite.seconds.get(name, 0):.3f}",
         "message": message}
        for name, outcome, message in outcomes
    ]  # fmt: skip


def sanitizer(verdicts: dict[str, Verdict]) -> list[Row]:
    return [
        {"tool": tool, "errors": "no summary" if v.errors is None else v.errors,
         "first": " | ".join(v.messages)}
        for tool, v in verdicts.items()
    ]  # fmt: skip


def ratios(found: list[Ratio]) -> list[Row]:
    return [
        {"case": r.case, "kernel": r.kernel, "figure": r.figure, "simulated": f"{r.simulated:.0f}",
         "counted": "" if r.counted is None else f"{r.counted:.0f}",
         "ratio": "" if r.ratio is None else f"{r.ratio:.3f}"}
        for r in found
    ]  # fmt: skip
