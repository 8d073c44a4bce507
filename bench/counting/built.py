"""What the build left of a kernel, by its mangled name: ptxas' report and the machine code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sass import Loop, main_loops

import build_cuda


def resources(kernel: str) -> dict[str, float]:
    """Registers and spilled bytes."""
    report = _reports()[_source_of(kernel)][kernel]
    return {
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
    }


def main_loop(kernel: str) -> Loop:
    loop = _loops(build_cuda.object_of(_source_of(kernel))).get(kernel)
    if loop is None:
        raise SystemExit(f"{kernel} has no loop with tensor core instructions")
    return loop


def _source_of(kernel: str) -> Path:
    found = [source for source, reports in _reports().items() if kernel in reports]
    if len(found) != 1:
        raise SystemExit(f"{kernel} ran, but {len(found)} files of the build report it: make build")
    return found[0]


@cache
def _reports() -> dict[Path, dict[str, str]]:
    """By source and kernel."""
    return {source: _report(build_cuda.log_of(source)) for source in build_cuda.sources()}


def _report(log: Path) -> dict[str, str]:
    if not log.exists():
        raise SystemExit(f"no {log}: make build")
    parts = log.read_text().split("Compiling entry function '")[1:]
    return {part.split("'")[0]: part for part in parts}


@cache
def _loops(path: Path) -> dict[str, Loop]:
    return main_loops(path)
