"""What has to notice a weakened backward kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.fx.experimental.symbolic_shapes  # noqa: F401  or autograd does, in each process anew
from support import simulator
from support.case import Case
from support.checks import check_backward
from support.data import flat, make_problem
from support.impls import Impl
from test_backward import (
    test_keys_that_do_not_exist_have_no_share,
    test_norm_weight_over_many_rows,
)
from test_components import test_a_backward_of_packed_sequences, test_a_backward_of_parts
from test_huge_scores import test_gradients_are_finite
from test_sim_backward import ORDERS, test_dq_is_summed_in_one_order

from .forward import in_wide_rows
from .target import MakeTarget, Target, identifier, kernel

BF16 = torch.bfloat16


def cases() -> list[Case]:
    """Few and small: what kills most mutants comes first."""
    base = Case(batch=1, sq=70, sk=150, heads=2, heads_k=1, d=64, dv=128, dtype=BF16, lam="token")
    return [
        base.but(causal=True, norm="affine", out_scale=0.2, lse=True),
        base.but(batch=2, sq=40, sk=260, heads=4, heads_k=2, window=(30, 5), norm="plain"),
        base.but(sq=150, sk=30, causal=True, lse=True, regime="sharp", out_scale=0.2),
        base.but(sq=33, sk=300, shared_k=True, scale=-0.2, norm="affine"),
        base.but(sq=20, sk=130, d=40, dv=80, heads_k=2, window=(-1, 40), regime="init"),
        base.but(sq=70, sk=130, d=48, dv=48, regime="init", norm="affine"),
    ]


def check_packed(impl: Impl) -> None:
    """Three sequences in one, the second without rows, against one call each."""
    p = make_problem(cases()[0].but(sq=70, sk=200))
    ends_q, ends_k = [0, 33, 33, 70], [0, 50, 55, 200]
    cu = [torch.tensor(ends, dtype=torch.int32) for ends in (ends_q, ends_k)]
    options = {"norm_weight": p.norm_weight, "norm_eps": p.norm_eps, "deterministic": True}
    packed = [x[0].clone().requires_grad_() for x in (flat(p.q), flat(p.k), p.v)]
    impl.varlen(*packed, 0.8, *cu, 37, 145, **options).backward(p.dout[0])
    for i in (0, 2):
        rows, keys = slice(*ends_q[i : i + 2]), slice(*ends_k[i : i + 2])
        parts = [x[:, y].clone().requires_grad_() for x, y in
                 ((flat(p.q), rows), (flat(p.k), keys), (p.v, keys))]  # fmt: skip
        impl.func(*parts, 0.8, **options).backward(p.dout[:, rows])
        for x, y, part in zip(packed, (rows, keys, keys), parts, strict=True):
            assert x.grad is not None and part.grad is not None
            assert torch.equal(x.grad[y], part.grad[0])


def check_parts(impl: Impl) -> None:
    """Gradients of a part of the keys, in fp32."""
    _, windowed, _, *others = cases()
    for case in (windowed, *others):
        test_a_backward_of_parts(impl, case.but(window=(-1, -1)), BF16, [20, 3])
    test_a_backward_of_packed_sequences(replace(impl, dtypes=(BF16,)), 64)


def check_everything(impl: Impl) -> None:
    first, *others = cases()
    check_backward(impl, make_problem(first))
    check_packed(impl)
    for case in others:
        check_backward(in_wide_rows(impl), make_problem(case))
    test_keys_that_do_not_exist_have_no_share(impl, BF16)
    test_norm_weight_over_many_rows(impl, BF16)
    test_gradients_are_finite(impl, 1e5, "none")
    check_parts(impl)
    for order in ORDERS:
        with pytest.MonkeyPatch.context() as patch:
            test_dq_is_summed_in_one_order(impl, simulator.start(), order, patch)


def _of_traits(name: str, *others: str) -> MakeTarget:
    parts = identifier(name), "bfloat16Li64ELi128E", *others
    return lambda shape: Target(parts, check_everything)


TARGETS: dict[str, MakeTarget] = {
    "bwd prepare": _of_traits("prepare_kernel"),
    "bwd main": lambda shape: Target(
        (kernel("bwd_kernel", "BwdTraits"), "bfloat16Li64ELi128E"), check_everything
    ),
    "bwd round": _of_traits("round_dq_kernel", "ELb0E"),
    "bwd sums of dq": lambda shape: Target(
        (identifier("round_dq_kernel"), "bfloat16Li64ELi128E", "ELb1E"), check_parts
    ),
    "bwd sum": lambda shape: Target((identifier("sum_weight_parts"),), check_everything),
}
