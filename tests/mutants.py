"""Would the suite notice? Each mutant of a forward kernel's PTX has to be killed.

    python tests/mutants.py --shape 64 128                all mutants of the bf16 kernel
    python tests/mutants.py --shape 64 128 --limit 40     a sample
    python tests/mutants.py --csv docs/mutants.csv        and record the score

A mutant drops or weakens one barrier, wait, predicate, fence, address term or fragment of the PTX
that ships (ptxsim.mutate), and goes through the whole way of a call: functional, ops, binding,
launch code. Survivors are printed with their PTX lines; docs/kernels.md says why each may live.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import torch
from support import sim_build
from support.case import Case
from support.checks import check_forward, check_saved
from support.data import flat, make_problem
from support.impls import Impl, load
from support.mutant_scores import Score, record
from test_huge_scores import (
    test_equal_scores_weigh_alike,
    test_one_component_alone,
    test_rows_turn_far_between_neighbours,
    test_scores_that_come_and_go,
)
from torch import Tensor
from torch.nn.functional import pad

ptxsim = sim_build.ptxsim
mutate: Any = importlib.import_module("ptxsim.mutate")


def cases(d: int, dv: int) -> list[Case]:
    """Few and small: what kills most mutants comes first."""
    base = Case(batch=1, sq=150, sk=170, heads=2, heads_k=1, d=d, dv=dv, dtype=torch.bfloat16)
    base = base.but(lam="token", regime="sharp")
    return [
        base.but(causal=True, norm="affine", out_scale=0.2),
        base.but(batch=2, sq=40, sk=100, heads=4, heads_k=2, window=(30, 5), lam="head"),
        base.but(sq=100, sk=30, causal=True, norm="plain", regime="normal"),
        base.but(sq=33, sk=300, shared_k=d == dv, scale=-0.2, regime="normal"),
        base.but(
            batch=2, sq=70, sk=70, d=d - 24, dv=(d - 24) * dv // d, norm="affine", regime="init"
        ),
        base.but(window=(30, 5), regime="normal"),
    ]


def spread(x: Tensor) -> Tensor:
    """The same numbers in rows with NaN between them."""
    return pad(x, (0, 128), value=nan)[..., : x.shape[-1]]


def in_wide_rows(impl: Impl) -> Impl:
    """Head dims are narrower than the kernel's tiles; what lies between them is not to be read."""

    def func(*tensors: Any, **options: Any) -> Any:
        return impl.func(*map(spread, tensors[:3]), *tensors[3:], **options)

    return replace(impl, func=func)


def check_neighbours(impl: Impl, case: Case) -> None:
    """A row whose logits outgrow all references leaves the others as they are, to the bit."""
    p = make_problem(case)
    q = flat(p.q).clone()
    out = impl.func(q, flat(p.k), p.v, 0.8)
    q[:, 5] *= 30
    steep = impl.func(q, flat(p.k), p.v, 0.8)
    others = torch.arange(case.sq) != 5
    assert torch.equal(out[:, others], steep[:, others])


def check_training(case: Case) -> None:
    p = make_problem(case)
    result = torch.ops.diffattn.fwd(
        p.q, p.k, p.v, p.lam_rows(torch.float32), p.norm_weight, None, None, 0, 0,
        p.softmax_scale(), -1, 0 if p.causal else -1, p.norm_eps, p.out_scale, False, True,
    )  # fmt: skip
    names = ("out", "lse", "o", "o2", "rstd")
    check_saved({name: x for name, x in zip(names, result, strict=True) if x.numel()}, p)


def check_packed(impl: Impl, case: Case) -> None:
    """Three sequences in one, the second without rows, against one call each."""
    p = make_problem(case.but(batch=1, sq=70, sk=90, lam="float"))
    ends_q, ends_k = [0, 33, 33, 70], [0, 50, 55, 90]
    cu = [torch.tensor(ends, dtype=torch.int32) for ends in (ends_q, ends_k)]
    packed = [x[0] for x in (flat(p.q), flat(p.k), p.v)]
    out = impl.varlen(*packed, 0.8, *cu, 37, 50)
    for i in (0, 2):
        rows, keys = slice(*ends_q[i : i + 2]), slice(*ends_k[i : i + 2])
        alone = impl.func(flat(p.q[:, rows]), flat(p.k[:, keys]), p.v[:, keys], 0.8)
        assert torch.equal(out[rows], alone[0])


def check_everything(impl: Impl, d: int, dv: int) -> None:
    first, *others = cases(d, dv)
    check_forward(impl, make_problem(first))
    check_training(first)
    check_packed(impl, first)
    for case in others:
        check_forward(in_wide_rows(impl), make_problem(case), five_d=True)
    check_training(others[-2])
    check_neighbours(impl, first)
    check_huge(impl)


def check_huge(impl: Impl) -> None:
    """Rows that become far, stay so, and are so no more; in one map alone."""
    for course in ((-1, 0, 1), (-1, -0.5, -1), (0.5, 1, 1)):
        test_scores_that_come_and_go(impl, torch.bfloat16, 1e8, {"causal": True}, course)
    test_equal_scores_weigh_alike(impl, torch.bfloat16, 3e4, {}, -1)
    test_one_component_alone(impl, 1)
    for sign in (1, -1):
        test_rows_turn_far_between_neighbours(impl, torch.bfloat16, sign, (-12, 0, 2), False)


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


def run(
    name: str, object_name: str, kernel: str, check: Callable[[Impl], None],
    args: argparse.Namespace, shape: tuple[int, int] = (64, 128),
) -> Any:  # fmt: skip
    """The report on a kernel, which a part of its mangled name tells from others in its object."""
    impl = load("sim", "package", "sm_80", 0)
    (path,) = [x for x in sim_build.kernel_objects() if x.name == object_name]
    ptx = ptx_of(path)
    report = mutate.run_mutants(
        ptx, checker(impl, ptx, check),
        kernel=kernel, limit=args.limit, seed=args.seed, kinds=tuple(args.kinds),
    )  # fmt: skip
    if args.csv:
        mutants = len(mutate.mutants_of(ptx, mutate.KINDS, kernel))
        killed, survived = len(report.killed), len(report.survived)
        today = datetime.date.today().isoformat()
        record(args.csv, Score(name, str(shape), "bf16", mutants, killed + survived, killed, today))
    return report


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--limit", type=int, help="draw that many mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kinds", nargs="+", default=mutate.KINDS, choices=mutate.KINDS)
    parser.add_argument("--csv", type=Path, help="record the score there; for draws of all kinds")
    parser.add_argument("--least", type=float, default=0.95, help="the share that must be killed")
    return parser


def finish(report: Any, args: argparse.Namespace) -> None:
    """Prints it; the exit status says whether enough were killed."""
    print(report)
    sys.exit(report.rate < args.least)


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--shape", type=int, nargs=2, default=(64, 128), metavar=("D", "DV"))
    args = parser.parse_args()
    d, dv = args.shape

    def check(impl: Impl) -> None:
        check_everything(impl, d, dv)

    finish(run("fwd", f"fwd_d{d}.o", f"bfloat16Li{d}ELi{dv}E", check, args, (d, dv)), args)


if __name__ == "__main__":
    main()
