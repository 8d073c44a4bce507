"""Runs mutants in forked processes and keeps the score."""

import multiprocessing
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import wait

NOT_PTX = ("BadProgram", "Unsupported")  # the change made no program: neither killed nor survived


@dataclass
class MutationReport:
    killed: list = field(default_factory=list)  # (mutant, what killed it)
    survived: list = field(default_factory=list)  # mutants
    invalid: list = field(default_factory=list)  # (mutant, why it is no program)
    crashed: list = field(default_factory=list)  # (mutant, exit code): killed, but the simulator should not crash

    @property
    def rate(self):
        """The share that was killed; of no mutants at all, nothing was."""
        return len(self.killed) / max(1, len(self.killed) + len(self.survived))

    def reasons(self):
        """How many mutants each kind of error killed."""
        return Counter(reason.split(":")[0] for _, reason in self.killed)

    def __str__(self):
        lines = [f"{len(self.killed)} of {len(self.killed) + len(self.survived)} mutants killed ({self.rate:.1%})"]
        by_kind = Counter(m.kind for m, _ in self.killed), Counter(m.kind for m in self.survived)
        for kind in sorted({*by_kind[0], *by_kind[1]}):
            lines.append(f"  {kind:9s} {by_kind[0][kind]:4d} killed {by_kind[1][kind]:4d} survived")
        lines.append("  by " + ", ".join(f"{name} {count}" for name, count in self.reasons().most_common()))
        for title, entries in (("survived", self.survived), ("crashed", self.crashed), ("invalid", self.invalid)):
            lines += [f"{title}:"] * bool(entries) + [f"  {m}" for m in (e[0] if isinstance(e, tuple) else e for e in entries)]
        return "\n".join(lines)


def child(test, text, pipe):
    """One verdict: None if the test saw nothing, else what it raised."""
    try:
        test(text)
        pipe.send(None)
    except BaseException as error:  # (a killed mutant may raise anything)
        pipe.send(f"{type(error).__name__}: {str(error)[:400]}")


@dataclass
class Running:
    mutant: object
    process: object
    pipe: object
    deadline: float

    def verdict(self):
        """Its result, or None while it runs: ('survived', ''), ('killed', why), ('invalid', why), ('crashed', code)."""
        if self.pipe.poll():
            try:
                why = self.pipe.recv()
            except EOFError:
                self.process.join()
                return "crashed", f"exit code {self.process.exitcode}"
            if why is None:
                return "survived", ""
            return ("invalid" if why.split(":")[0] in NOT_PTX else "killed"), why
        if time.monotonic() > self.deadline:
            return "killed", "Timeout: ran on for too long"
        return None

    def close(self):
        if self.process.is_alive():
            self.process.join(0.2)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def start(test, text, mutant, timeout):
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(test, text, send), daemon=True)
    process.start()
    send.close()
    return Running(mutant, process, receive, time.monotonic() + timeout)


def finish_one(running):
    """Blocks until some of the running mutants have a verdict; yields and removes them."""
    while True:
        soonest = max(0.0, min(r.deadline for r in running) - time.monotonic())
        wait([r.pipe for r in running], timeout=soonest + 0.01)
        done = [(r, verdict) for r in running if (verdict := r.verdict())]
        if done:
            for r, _ in done:
                r.close()
                running.remove(r)
            return done


def check_original(test, text, timeout):
    """How long the unchanged text takes; an error if the test does not pass on it."""
    begin, running = time.monotonic(), [start(test, text, None, timeout or 600)]
    ((_, (status, why)),) = finish_one(running)
    if status != "survived":
        raise ValueError(f"the test fails on the unchanged text: {why}")
    return time.monotonic() - begin


def run_in_processes(ptx, test, mutants, processes, timeout):
    took = check_original(test, ptx, timeout)
    timeout = timeout or 10 + 10 * took
    report, waiting, running = MutationReport(), list(reversed(mutants)), []
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop()
            running.append(start(test, mutant.apply(ptx), mutant, timeout))
        for r, (status, why) in finish_one(running):
            if status == "survived":
                report.survived.append(r.mutant)
            elif status == "invalid":
                report.invalid.append((r.mutant, why))
            else:
                report.killed.append((r.mutant, why if status == "killed" else f"Crash: {why}"))
                if status == "crashed":
                    report.crashed.append((r.mutant, why))
    for entries in (report.killed, report.survived, report.invalid, report.crashed):
        entries.sort(key=lambda e: (e[0] if isinstance(e, tuple) else e).ptx_line)
    return report
