"""How fast the simulator is: warp instructions a second on an attention kernel, all checks on. A benchmark, no test.

    python tests/ptxsim/bench.py [--n 2048] [--repeats 7]

The kernel is tests/cases/attention.cu: mma, ldmatrix, cp.async, shuffles, exp2 and scalar arithmetic, one causal head of
64 in bf16. Each launch is checked for errors and undefined output, not for its values: tests/test_cases.py does that.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import ptxsim  # noqa: E402 (the package lies beside this script)


def run(kernel, n, threads, repeats):
    """Seconds of each launch but the first, which also warms up, and the last launch's counters."""
    rng, seconds = np.random.default_rng(0), []
    dev = ptxsim.Device("sm_80", seed=0, threads=threads)
    halves = [rng.standard_normal((n, 64)).astype(np.float32).view(np.uint32) >> 16 for _ in range(3)]
    inputs = [dev.tensor(x.astype(np.uint16), name) for x, name in zip(halves, "qkv", strict=True)]
    for _ in range(repeats + 1):
        out = dev.empty((n, 64), np.uint16, "out")
        begin = time.perf_counter()
        counters = dev.launch(kernel, n // 64, 128, [*inputs, out, np.int32(n), np.float32(math.log2(math.e) / 8)])
        seconds.append(time.perf_counter() - begin)
        assert out.undefined_bytes == 0
    return seconds[1:], counters


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2048, help="sequence length, a multiple of 64")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    kernel = ptxsim.compile_cu(HERE / "tests" / "cases" / "attention.cu", arch="sm_80").kernel("attention")
    print("threads   warp instructions   median s   million/s: median   best")
    for threads in (1, 2):
        seconds, counters = run(kernel, args.n, threads, args.repeats)
        work, middle = counters["warp_instructions"], statistics.median(seconds)
        print(f"{threads:7} {work:19,} {middle:10.3f} {work / middle / 1e6:19.2f} {work / min(seconds) / 1e6:6.2f}")


if __name__ == "__main__":
    main()
