"""Interleaved timing, and the machine's own limits (matrix rate, memory bandwidth) beside it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Run = Callable[[], object]
SAMPLE_SECONDS = 0.02  # a shorter call is repeated until one sample lasts this long
MM_SIZE = 1024
MM = "torch.mm"


@dataclass
class Samples:
    """Seconds a call, one entry a round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """p25 and p75."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Clock:
    """Wall time; or this process's CPU time, which other work on the machine disturbs less.

    CPU time adds up over threads, spinning ones too, so it is meant for one thread.
    """

    device: str = "cpu"
    cpu_time: bool = False

    def now(self) -> float:
        return time.process_time() if self.cpu_time else time.perf_counter()

    def seconds(self, run: Run, repeats: int = 1) -> float:
        """Of one call, averaged over `repeats` of them."""
        start = self.now()
        for _ in range(repeats):
            run()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return (self.now() - start) / repeats


def interleave(
    runs: dict[str, Run], rounds: int, budget: float, clock: Clock
) -> dict[str, Samples]:
    """Time every run once a round, so that a slow spell of the machine hits all of them alike.

    The runs have been called before. The first round also finds how often a short call has to be
    repeated for a sample; a run that would need more than `budget` seconds takes part in fewer
    rounds: in three, or in this one only if a single call exceeds the budget.
    """
    repeats, turns, samples = {}, {}, {}
    for name, run in runs.items():
        once = clock.seconds(run)
        repeats[name] = max(1, math.ceil(SAMPLE_SECONDS / once))
        fewest = 1 if once > budget else 3  # one hiccup must not decide alone
        turns[name] = min(rounds, max(fewest, int(budget / (once * repeats[name]))))
        samples[name] = Samples([once if repeats[name] == 1 else clock.seconds(run, repeats[name])])
    order = list(runs)
    for r in range(1, rounds):
        for name in order:
            if _takes_part(r, turns[name], rounds):
                samples[name].seconds.append(clock.seconds(runs[name], repeats[name]))
        order = order[1:] + order[:1]  # nobody always follows the same neighbour
    return samples


def _takes_part(r: int, turns: int, rounds: int) -> bool:
    """Spread `turns` of `rounds` evenly; the first round is always one of them."""
    return r * turns // rounds != (r - 1) * turns // rounds


def mm_run(device: str = "cpu") -> tuple[Run, int]:
    """A square fp32 torch.mm and its flop: the rate that the machine's BLAS reaches."""
    a = torch.randn(MM_SIZE, MM_SIZE, device=device)
    b = torch.randn(MM_SIZE, MM_SIZE, device=device)
    out = torch.mm(a, b)
    return lambda: torch.mm(a, b, out=out), 2 * MM_SIZE**3


def memory_bandwidth(clock: Clock, mib: int = 1024, rounds: int = 5) -> float:
    """Bytes a second of the fastest large read: the best of several sums and dot products."""
    x = torch.ones(mib * 2**20 // 4, device=clock.device)
    y, z = x.chunk(2)
    runs: list[Run] = [lambda: x.sum(), lambda: torch.dot(y, z)]
    best = min(clock.seconds(run, 2) for _ in range(rounds) for run in runs)
    return x.numel() * x.element_size() / best
