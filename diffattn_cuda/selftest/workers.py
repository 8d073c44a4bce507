"""Runs the checks of one device in a process of its own, and goes on where that process dies.

A kernel that crashes, hangs or leaves the GPU unusable costs the line of its check; the next
process begins with the check after it. It is also how each instruction set of the CPU gets its
turn: a process chooses one, once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

import torch

from .checks import Check, Outcome, checks_of, run

WORKER = [sys.executable, "-m", "diffattn_cuda.selftest.workers"]
SILENCE = 120.0  # seconds without a line; the driver may have to compile PTX first
MOST_DEATHS = 3  # of processes on one device; the checks that are left are then given up
LOST = 75  # exit code: the last outcome made the device unusable for this process


def outcomes(device: str) -> Iterator[Outcome]:
    """Of every check of this device, as they come."""
    checks, deaths = checks_of(device), 0
    done = 0
    while done < len(checks):
        if deaths == MOST_DEATHS:
            yield Outcome(checks[done], failure=f"not run, nor what follows: {deaths} crashes")
            return
        worker = Worker(device, done)
        for outcome in worker.outcomes(checks[done:]):
            done += 1
            yield outcome
        if worker.died_in_a_check:
            yield Outcome(checks[done], failure=worker.death())
            done += 1
        deaths += worker.code != 0


class Worker:
    """One process, from check number `first` on."""

    def __init__(self, device: str, first: int) -> None:
        # Threads wait without spinning: these are many short calls, and the machine may be busy.
        environment = {"OMP_WAIT_POLICY": "passive"} | os.environ
        kind, _, which = device.partition(":")
        if kind == "cpu":
            environment["DIFFATTN_CPU_ISA"] = which
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*WORKER, device, str(first)],
            stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=environment,
        )  # fmt: skip
        self._silent = False
        self.code = 0

    def outcomes(self, checks: list[Check]) -> Iterator[Outcome]:
        """As many as the process completes."""
        assert self._process.stdout is not None
        for check in checks:
            watch = threading.Timer(SILENCE, self._give_up)
            watch.start()
            line = self._process.stdout.readline()
            watch.cancel()
            if not line.endswith("\n"):
                break
            yield Outcome(check, **json.loads(line))
        self._process.stdout.close()
        self.code = self._process.wait()

    @property
    def died_in_a_check(self) -> bool:
        return self.code not in (0, LOST)

    def death(self) -> str:
        """In words."""
        if self._silent:
            return f"no answer for {SILENCE:.0f} s"
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines()
        how = f"exit code {self.code}"
        if self.code < 0:
            how = signal.Signals(-self.code).name
        return f"its process died: {how}" + (f", {said[-1]}" if said else "")

    def _give_up(self) -> None:
        self._silent = True
        self._process.kill()


def work(device: str, first: int) -> int:
    """The process: a line of JSON per check."""
    where = torch.device(device if device.startswith("cuda") else "cpu")
    for check in checks_of(device)[first:]:
        try:
            outcome = run(check, where)
        except Exception as error:  # any error of a kernel is this check's outcome
            said = str(error).strip().splitlines() or [""]
            outcome = Outcome(check, failure=f"{type(error).__name__}: {said[0]}")
        line = outcome.as_dict()
        del line["check"]
        print(json.dumps(line), flush=True)
        if outcome.failure and not _usable(where):
            return LOST
    return 0


def _usable(device: torch.device) -> bool:
    """After an illegal access every later call of this process fails."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(work(sys.argv[1], int(sys.argv[2])))
