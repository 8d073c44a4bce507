"""The simulator's counts of the problems that ncu will count: tools/gpu_day/simulated.csv."""

from __future__ import annotations

from counting.runs import launches

from .cases import COUNTED, KERNELS
from .counters import Counts


def counts() -> Counts:
    found: Counts = {}
    for case, problem in COUNTED.items():
        for launch in launches(lambda problem=problem: problem("cpu")):
            # In a mangled name an identifier follows its length.
            kernel = next((k for k in KERNELS if f"{len(k)}{k}" in launch.kernel), None)
            if kernel is None:
                continue
            assert (case, kernel) not in found, f"{case} launches {kernel} twice"
            c = launch.counters
            found[case, kernel] = {
                "mma": c["inst_mma"],
                "shared_wavefronts": c["shared_wavefronts"],
                "l2_bytes": 32 * c["global_sectors"],
                "dram_bytes": c["global_distinct_bytes"],
            }
    return found
