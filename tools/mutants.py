"""Would the suite notice? Each mutant of a kernel's PTX has to be killed.

    python tools/mutants.py fwd --shape 64 128            all mutants of the bf16 forward
    python tools/mutants.py fwd sm90 --kinds wait parity  of Hopper's, on a simulated H100
    python tools/mutants.py bwd main --limit 40           a sample of the backward's main kernel
    python tools/mutants.py combine --csv docs/mutants.csv    and record the score

A mutant drops or weakens one barrier, wait, predicate, fence, address term or fragment of the PTX
that ships (ptxsim.mutate). Each goes through the whole way of a call: functional, ops, binding,
launch code. Survivors are printed with their PTX lines; docs/mutants.md says why each may live.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

import build_cuda  # noqa: E402
import torch  # noqa: E402
from mutation import backward, decode, forward, rings  # noqa: E402
from mutation.scores import Score, record  # noqa: E402
from support.impls import Impl, load  # noqa: E402
from support.sim_build import ptxsim  # noqa: E402

mutate: Any = importlib.import_module("ptxsim.mutate")

# By the kernel's name on the command line and in docs/mutants.csv: how its target is made.
KERNELS = forward.TARGETS | backward.TARGETS | decode.TARGETS | rings.TARGETS


def checker(impl: Impl, ptx: str, check: Callable[[Impl], None]) -> Callable[[str], None]:
    """What one forked process does with one mutant."""

    def check_mutant(mutant: str) -> None:
        torch.manual_seed(0)
        ptxsim.on_ptx(lambda text: mutant if text.lstrip() == ptx else text)
        check(impl)

    return check_mutant


def ptx_of(object_file: Path) -> str:
    """The PTX embedded in an object that nvcc made without compression."""
    data = object_file.read_bytes()
    begin = data.index(b".version ")
    return data[begin : data.index(b"\0", begin)].decode()


def run(name: str, args: argparse.Namespace) -> Any:
    """The report on a kernel."""
    target = KERNELS[name](tuple(args.shape))
    source, kernel = build_cuda.find_kernel(*target.parts, architecture=target.architecture)
    ptx = ptx_of(build_cuda.object_of(source))
    impl = load("sim", "package", f"sm_{target.architecture}", 0)
    report = mutate.run_mutants(
        ptx, checker(impl, ptx, target.check),
        kernel=kernel, limit=args.limit, seed=args.seed, kinds=tuple(args.kinds),
    )  # fmt: skip
    if args.csv:
        mutants = len(mutate.mutants_of(ptx, mutate.KINDS, kernel))
        killed, survived = len(report.killed), len(report.survived)
        today, shape = datetime.date.today().isoformat(), str(tuple(args.shape))
        record(args.csv, Score(name, shape, "bf16", mutants, killed + survived, killed, today))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kernel", nargs="+", help=f"one of: {', '.join(KERNELS)}")
    parser.add_argument("--shape", type=int, nargs=2, default=(64, 128), metavar=("D", "DV"),
                        help="of a forward; the others have checks for (64, 128)")  # fmt: skip
    parser.add_argument("--limit", type=int, help="draw that many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kinds", nargs="+", default=mutate.KINDS, choices=mutate.KINDS)
    parser.add_argument("--csv", type=Path, help="record the score there; for draws of all kinds")
    parser.add_argument("--least", type=float, default=0.95, help="the share that must be killed")
    args = parser.parse_args()
    name = " ".join(args.kernel)
    if name not in KERNELS:
        parser.error(f"no kernel {name!r}; there are {', '.join(KERNELS)}")
    if not name.startswith("fwd") and tuple(args.shape) != (64, 128):
        parser.error(f"--shape is {tuple(args.shape)}, but {name} has checks for (64, 128) alone")
    report = run(name, args)
    print(report)
    sys.exit(report.rate < args.least)


if __name__ == "__main__":
    main()
