"""What the CUDA kernels do, counted: no GPU is needed, and none would count better.

    python bench/counts.py --csv docs/counts.csv

Three sources: ptxas' report (registers, spills), the machine code of the main loop
(counting/sass.py), and runs in the simulator (tests/ptxsim): tensor core flop, shared-memory
wavefronts, exp2s, bytes. counting/figures.py says what each figure is. A figure over its limit
is bold and stands next to the limit. The last table compares the formulas with those of several
calls.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from counting import decoding, hopper, training  # noqa: E402
from counting.decoding import Step  # noqa: E402
from counting.figures import Counts, write  # noqa: E402
from counting.runs import Shape  # noqa: E402
from counting.tables import AROUND, MATRIX, Table, counted, formulas  # noqa: E402
from gpu_day import counters, simulate  # noqa: E402
from tabulate import tabulate  # noqa: E402

WIDE = [Shape(d, 2 * d) for d in (32, 64, 96, 128)]
NARROW = [Shape(d, d) for d in (32, 64, 96, 128)]  # DIFF V2
STEPS = [
    *(Step(shape) for shape in WIDE + NARROW),
    Step(Shape(128, 256), nheads=8, page=16),
    Step(Shape(64, 128), nheads=16, page=256),
    Step(Shape(64, 128), splits=1),
]


def count_all(seqlen: int) -> Iterator[Counts]:
    for shape in WIDE + NARROW:
        for causal in (False, True):
            yield training.forward(shape, seqlen, causal)
            yield training.backward(shape, seqlen, causal)
        yield training.forward_saving(shape, seqlen, False)
        yield from training.around_backward(shape, seqlen)
    for shape in hopper.SHAPES:
        yield hopper.forward(shape, seqlen, False)
        yield hopper.forward(shape, seqlen, True)
    for step in STEPS:
        yield from decoding.decode(step)


def show(table: Table) -> None:
    header, lines = table
    print(tabulate(lines, header, tablefmt="github", disable_numparse=True), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument(
        "--csv", type=Path, help="also write the figures there, and tools/gpu_day/simulated.csv"
    )
    args = parser.parse_args()
    counts = list(count_all(args.seqlen))
    for kernels in (MATRIX, AROUND, ("decode",)):
        show(counted(counts, kernels))
    show(formulas(counts))
    if args.csv:
        write(args.csv, counts)
        counters.save(counters.SIMULATED, simulate.counts())


if __name__ == "__main__":
    main()
