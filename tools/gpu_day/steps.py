"""One command of the day: it has a time limit, and its output goes to a log and to the screen."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KILLED = 124  # exit code of a command that ran into its limit


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: float  # seconds, after which it is killed
    why: str

    def __str__(self) -> str:
        return f"{self.name}: at most {self.limit:.0f} s: {self.why}\n  {shlex.join(self.command)}"


@dataclass(frozen=True)
class Done:
    name: str
    code: int
    seconds: float
    log: Path

    @property
    def killed(self) -> bool:
        return self.code == KILLED


def python(*arguments: str | Path) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def run(
    step: Step,
    out: Path,
    environment: dict[str, str],
    watch: Callable[[], bool] = lambda: False,
) -> Done:
    """Runs it in `out`, where no source is on its path; kills it if it is late, or if watch()."""
    log, start, killed = out / f"{step.name}.log", time.monotonic(), threading.Event()
    print(f"\n== {step}", flush=True)
    process = subprocess.Popen(
        step.command, cwd=out, env=environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip

    def guard() -> None:
        while process.poll() is None:
            if time.monotonic() - start > step.limit or watch():
                killed.set()
                os.killpg(process.pid, signal.SIGKILL)
                return
            time.sleep(0.2)

    guardian = threading.Thread(target=guard)
    guardian.start()
    assert process.stdout is not None
    with log.open("a") as file:
        for line in process.stdout:
            file.write(line)
            print(f"  {line}", end="", flush=True)
    code = process.wait()
    guardian.join()
    return Done(step.name, KILLED if killed.is_set() else code, time.monotonic() - start, log)
