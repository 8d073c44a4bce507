"""What has to notice a weakened forward kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from support.case import Case
from support.checks import check_forward, check_saved
from support.data import flat, make_problem
from support.impls import Impl
from test_components import test_each_map
from test_huge_scores import (
    test_equal_scores_weigh_alike,
    test_one_component_alone,
    test_rows_turn_far_between_neighbours,
    test_scores_that_come_and_go,
)

from .target import MakeTarget, Target, identifier, kernel, spread


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
        p.softmax_scale(), *p.mask(), p.norm_eps, p.out_scale, False, True,
    )  # fmt: skip
    names = ("out", "lse", "o", "o2", "rstd")
    check_saved({name: x for name, x in zip(names, result, strict=True) if x.numel()}, p)


def check_packed(impl: Impl, case: Case, times: int = 1) -> None:
    """Three sequences in one, the second without rows, against one call each."""
    p = make_problem(case.but(batch=1, sq=70 * times, sk=90 * times, lam="float"))
    ends_q, ends_k = ([end * times for end in ends] for ends in ([0, 33, 33, 70], [0, 50, 55, 90]))
    cu = [torch.tensor(ends, dtype=torch.int32) for ends in (ends_q, ends_k)]
    packed = [x[0] for x in (flat(p.q), flat(p.k), p.v)]
    out = impl.varlen(*packed, 0.8, *cu, 37 * times, 50 * times)
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
    for case in (first, others[-2]):
        test_each_map(impl, case.but(norm="none", out_scale=1.0), case.dtype)
    check_neighbours(impl, first)
    check_huge(impl)


def check_huge(impl: Impl) -> None:
    """Rows that become far, stay far, and become ordinary again; in one map alone."""
    for course in ((-1, 0, 1), (-1, -0.5, -1), (0.5, 1, 1)):
        test_scores_that_come_and_go(impl, torch.bfloat16, 1e8, {"causal": True}, course)
    test_equal_scores_weigh_alike(impl, torch.bfloat16, 3e4, {}, -1)
    test_one_component_alone(impl, 1)
    for sign in (1, -1):
        test_rows_turn_far_between_neighbours(impl, torch.bfloat16, sign, (-12, 0, 2), False)


def _target(shape: tuple[int, int]) -> Target:
    d, dv = shape
    parts = kernel("fwd_kernel", "FwdTraits"), f"bfloat16Li{d}ELi{dv}ELb0E"
    return Target(parts, lambda impl: check_everything(impl, d, dv))


def check_capped(impl: Impl, d: int, dv: int) -> None:
    """Caps below the scores and far above them."""
    for case in cases(d, dv):
        check_forward(impl, make_problem(case.but(softcap=2.0)))
    check_forward(impl, make_problem(cases(d, dv)[0].but(regime="init", softcap=1e6)))


def _capped(shape: tuple[int, int]) -> Target:
    d, dv = shape
    parts = kernel("fwd_kernel", "FwdTraits", capped=True), f"bfloat16Li{d}ELi{dv}ELb0E"
    return Target(parts, lambda impl: check_capped(impl, d, dv))


def check_hopper(impl: Impl, d: int, dv: int) -> None:
    """Also a sequence that ends in a tile that is not its first."""
    check_everything(impl, d, dv)
    check_packed(impl, cases(d, dv)[0], 4)


def _hopper(shape: tuple[int, int]) -> Target:
    d, dv = shape
    parts = identifier("fwd_kernel"), f"bfloat16Li{d}ELi{dv}E"
    return Target(parts, lambda impl: check_hopper(impl, d, dv), architecture=90)


TARGETS: dict[str, MakeTarget] = {
    "fwd": _target,
    "fwd capped": _capped,
    "fwd sm90": _hopper,
}
