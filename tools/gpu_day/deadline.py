"""A pytest plugin that runs the tests of the device, the most telling first, until its time is up.

    pytest -p gpu_day.deadline --until 1764000000 --record tests.jsonl --device cuda tests

The record gets a line as each test begins and ends, so that a reader knows which test hung or took
the process with it. Tests that the record has already are left out: a new process goes on.
Where a failure left the GPU unusable, the session ends with exit code 75.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

LOST = 75
# Parts of test ids, the most telling first. Ids that contain none of them come last.
PRIORITY = (
    "test_selftest.py::test_a_kernel_is_right",
    "test_forward.py::test_every_width",
    "test_probes.py::test_equal_logits_and_integer_values_are_exact",
    "test_kvcache.py::test_every_query_length",
    "test_backward.py::test_regimes",
    "test_varlen.py::test_each_sequence_obeys_the_law",
    "test_varlen.py::test_gradients_equal",
    "test_kvcache.py::test_splits_agree",
    "test_ring.py::test_sequences_of_many_lengths",
    "test_forward.py::test_every_pair_of_options",
    "test_backward.py::test_every_pair_of_options",
    "test_kvcache.py::test_every_pair_of_options",
    "test_kvcache_device.py",
    "test_backward.py",
    "test_forward.py",
    "test_kvcache.py",
    "test_varlen.py",
    "test_safety.py",
    "test_layouts.py",
    "test_errors",
    "test_library.py",
    "test_probes.py",
    "test_examples.py",
    "test_property.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--until", type=float, required=True, help="no test begins later (time.time)")
    parser.addoption("--record", type=Path, required=True, help="the file of lines of JSON")


def rank(nodeid: str) -> int:
    return next((i for i, part in enumerate(PRIORITY) if part in nodeid), len(PRIORITY))


class Deadline:
    """Of one session."""

    def __init__(self, until: float, record: Path) -> None:
        self.until, self._record = until, record
        self._seconds: dict[str, float] = {}
        self._failed: dict[str, str] = {}
        self._skipped: set[str] = set()

    def write(self, **event: Any) -> None:
        with self._record.open("a") as file:
            file.write(json.dumps(event) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        wanted = [item for item in items if "impl" in getattr(item, "fixturenames", ())]
        wanted.sort(key=lambda item: rank(item.nodeid))
        self.write(collected=[item.nodeid for item in wanted])
        begun = {event["begin"] for event in events(self._record) if "begin" in event}
        items[:] = [item for item in wanted if item.nodeid not in begun]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """True: handled. Late tests neither run nor fail."""
        if time.time() >= self.until:
            item.session.shouldstop = "the time is up"
            return True
        self.write(begin=item.nodeid, at=time.time())
        return None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            lines = str(report.longrepr).strip().splitlines()
            self.write(broken=report.nodeid, message=lines[-1] if lines else "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        self._seconds[name] = self._seconds.get(name, 0.0) + report.duration
        if report.failed:
            self._failed.setdefault(name, said(report))
        elif report.skipped:
            self._skipped.add(name)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcome = "skipped" if nodeid in self._skipped else "passed"
        outcome = "failed" if nodeid in self._failed else outcome
        message, seconds = self._failed.get(nodeid, ""), self._seconds.get(nodeid, 0.0)
        self.write(end=nodeid, outcome=outcome, message=message, seconds=seconds)
        if outcome == "failed" and not usable():
            pytest.exit("the GPU is unusable for this process", returncode=LOST)


def said(report: pytest.TestReport) -> str:
    """The exception in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return " ".join(text.split())[:300]


def usable() -> bool:
    """After an illegal access every later call of this process fails."""
    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def events(record: Path) -> list[dict[str, Any]]:
    """All whole lines of a record."""
    lines = record.read_text().split("\n")[:-1] if record.exists() else []
    return [json.loads(line) for line in lines]


def pytest_configure(config: pytest.Config) -> None:
    until, record = config.getoption("--until"), config.getoption("--record")
    config.pluginmanager.register(Deadline(until, record), "gpu-deadline")
