"""One page of Markdown about the day: what failed comes first, then the figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .counters import Ratio
from .sanitize import Verdict
from .steps import Done
from .suite import Suite

NAME = "page.md"
MOST_LISTED = 20  # failures; tests.csv has all
LIMITS = ("torch.mm", "read")  # rows of speed.csv that are no peers


@dataclass
class Day:
    """What is known so far."""

    device: str
    steps: list[Done] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)  # of the self-test
    suite: Suite | None = None
    speed: list[dict[str, str]] = field(default_factory=list)

    @property
    def wrong_kernels(self) -> list[str]:
        checks = self.report.get("checks", {})
        return [
            f"{device}: {c['check']['op']} {c['check']['dtype']} d = {c['check']['head_dims']}: "
            f"{c['failure']}"
            for device, found in checks.items()
            for c in found
            if c["failure"]
        ]

    @property
    def succeeded(self) -> bool:
        failed = self.wrong_kernels or any(step.code for step in self.steps)
        return not failed and self.suite is not None and not (self.suite.failed or self.suite.ended)


def write(out: Path, day: Day) -> None:
    (out / NAME).write_text("\n".join(lines(day)) + "\n")


def lines(day: Day) -> list[str]:
    return [
        "# A day with a GPU", "",
        *_machine(day), "",
        "## What failed", "",
        *(_failures(day) or ["Nothing of what ran."]), "",
        "## Tests", "",
        *_tests(day.suite), "",
        "## Speed", "",
        *_speed(day.speed),
    ]  # fmt: skip


def _machine(day: Day) -> list[str]:
    found = []
    for title in ("hardware", "versions", "built"):
        found += [f"- {name}: {text}" for name, text in day.report.get(title, {}).items()]
    found += [f"- {d['name']}: {d['kernels']}" for d in day.report.get("kernels", [])]
    return found or ["The self-test gave no report: see selftest.log."]


def _failures(day: Day) -> list[str]:
    found = [f"- self-test, {text}" for text in day.wrong_kernels]
    for step in day.steps:
        if step.killed:
            found.append(f"- {step.name} was killed after {step.seconds:.0f} s: {step.log.name}")
        elif step.code and not (step.name == "selftest" and day.wrong_kernels):
            found.append(f"- {step.name} ended with exit code {step.code}: {step.log.name}")
    if day.suite is not None:
        if day.suite.ended:
            found.append(f"- tests: {day.suite.ended}")
        failed = list(day.suite.failed.items())
        found += [f"- {name}: {message}" for name, message in failed[:MOST_LISTED]]
        if len(failed) > MOST_LISTED:
            found.append(f"- and {len(failed) - MOST_LISTED} more tests: tests.csv")
    return found


def _tests(suite: Suite | None) -> list[str]:
    if suite is None:
        return ["Not begun."]
    return [
        f"{len(suite.failed)} failed, {len(suite.passed)} passed, {len(suite.skipped)} skipped, "
        f"{len(suite.not_reached)} not reached, in {sum(suite.seconds.values()):.0f} s."
    ]


PROBLEM = ("direction", "dtype", "batch", "nheads", "nheads_k", "seqlen_q", "seqlen_k", "headdim",
           "causal")  # fmt: skip


def _speed(rows: list[dict[str, str]]) -> list[str]:
    """A line for each problem: ours, and how many times as long the best peers take."""
    if not rows:
        return ["Nothing was timed."]
    problems: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        problems.setdefault(tuple(row[name] for name in PROBLEM), {})[row["peer"]] = row
    found = [
        "Peers by how many times as long they take, the fastest first; below 1 they beat ours.", "",
        "| problem | ours, ms | TF/s | % of torch.mm | GB/s | % of a read | peers |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    return found + [_problem_line(key, peers) for key, peers in problems.items()]


def _problem_line(key: tuple[str, ...], peers: dict[str, dict[str, str]]) -> str:
    p = dict(zip(PROBLEM, key, strict=True))
    name = f"{p['direction']} {p['dtype']} B{p['batch']} H{p['nheads']}/{p['nheads_k']} "
    name += f"Sq{p['seqlen_q']} Sk{p['seqlen_k']} d{p['headdim']}"
    name += " causal" * (p["causal"] == "True")
    others = [
        (float(row["ours_speedup"]), peer)
        for peer, row in peers.items()
        if peer not in (*LIMITS, "ours") and row["ours_speedup"]
    ]
    ranking = ", ".join(f"{peer} {ratio:.2f}" for ratio, peer in sorted(others))
    ours = peers.get("ours")
    if ours is None:
        return f"| {name} | left out: speed.log | | | | | {ranking} |"
    cells = [f"{float(ours['ms']):.3f}", _number(ours["gflops"], 1e-3)]
    cells += [_number(ours[column]) for column in ("mm_percent", "gbytes", "bandwidth_percent")]
    return f"| {name} | {' | '.join(cells)} | {ranking} |"


def _number(text: str, factor: float = 1.0) -> str:
    return f"{factor * float(text):.1f}" if text else ""


def sanitizer(verdicts: dict[str, Verdict]) -> list[str]:
    found = [
        "# compute-sanitizer on the core set",
        "",
        "| tool | errors | first |",
        "|---|---:|---|",
    ]
    for tool, v in verdicts.items():
        errors = "did not finish" if v.errors is None else str(v.errors)
        found.append(f"| {tool} | {errors} | {'; '.join(v.messages)} |")
    return found


def ratios(found: list[Ratio]) -> list[str]:
    page = [
        "# ncu next to the simulator", "",
        "| problem | kernel | figure | simulated | ncu | ratio |", "|---|---|---|---:|---:|---:|",
    ]  # fmt: skip
    for r in found:
        counted = "no launch" if r.counted is None else f"{r.counted:.0f}"
        ratio = "" if r.ratio is None else f"{r.ratio:.3f}"
        page.append(
            f"| {r.case} | {r.kernel} | {r.figure} | {r.simulated:.0f} | {counted} | {ratio} |"
        )
    return page
