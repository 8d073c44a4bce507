"""Interleaved timing of calls and of the machine's limits: matrix rate and memory bandwidth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Run = Callable[[], object]
SAMPLE_SECONDS = 0.02  # a shorter call is repeated until one sample lasts this long
MM_SIZE = {"cpu": 1024, "cuda": 8192}
READ_BYTES = 2**30
# The machine's own limits take part in every round, under these names.
MM, READ = "torch.mm", "read"
LIMITS = (MM, READ)


@dataclass
class Samples:
    """Seconds per call, one entry per round."""

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


class Clock(Protocol):
    def seconds(self, run: Run, repeats: int = 1) -> float:
        """Of one call, averaged over `repeats` of them."""


@dataclass(frozen=True)
class CpuClock:
    """Wall time; or this process's CPU time, which other work on the machine disturbs less.

    CPU time adds up over threads, spinning ones too, so it is meant for one thread.
    """

    cpu_time: bool = False

    def seconds(self, run: Run, repeats: int = 1) -> float:
        now = time.process_time if self.cpu_time else time.perf_counter
        start = now()
        for _ in range(repeats):
            run()
        return (now() - start) / repeats


class CudaClock:
    """The GPU's time by its own events; before each call its L2 cache is overwritten.

    Overwriting also keeps the GPU busy while Python queues the call, so that what is timed is not
    the launching of kernels, as far as they are launched faster than they run.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        size = cuda.get_device_properties(cuda.current_device()).L2_cache_size
        self._flood = torch.empty(2 * size, dtype=torch.uint8, device=cuda.current_device())

    def seconds(self, run: Run, repeats: int = 1) -> float:
        events = []
        for _ in range(repeats):
            self._flood.zero_()
            begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            events.append((begin, end))
        self._cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in events) / repeats / 1e3


def interleave(
    runs: dict[str, Run], rounds: int, budget: float, clock: Clock
) -> dict[str, Samples]:
    """Time every run once per round, so that a slow spell of the machine affects all of them.

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
        order = order[1:] + order[:1]  # no run always follows the same neighbour
    return samples


def _takes_part(r: int, turns: int, rounds: int) -> bool:
    """Spread `turns` of `rounds` evenly; the first round is always one of them."""
    return r * turns // rounds != (r - 1) * turns // rounds


def mm_run(device: str, clock: Clock, dtype: torch.dtype) -> tuple[Run, int]:
    """A square torch.mm and its flop: the rate that the machine's BLAS reaches.

    On a CPU in the given dtype or in fp32, whichever is faster: not all CPUs multiply 16 bits.
    """
    size = MM_SIZE[device]
    dtypes = {dtype, torch.float32} if device == "cpu" else {dtype}
    return _fastest([_mm(size, device, each) for each in dtypes], clock), 2 * size**3


def _mm(size: int, device: str, dtype: torch.dtype) -> Run:
    a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def read_run(device: str, clock: Clock, nbytes: int = READ_BYTES) -> tuple[Run, int]:
    """A large read and its bytes: a sum or a dot product, whichever is faster here."""
    x = torch.ones(nbytes // 4, device=device)
    y, z = x.chunk(2)
    runs: list[Run] = [lambda: x.sum(), lambda: torch.dot(y, z)]
    return _fastest(runs, clock), nbytes


def _fastest(runs: list[Run], clock: Clock) -> Run:
    for run in runs:
        run()
    return min(runs, key=lambda run: clock.seconds(run, 2))
