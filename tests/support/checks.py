"""Run an implementation on a problem and hold it to the law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffattn_cuda import reference

from .data import Problem, flat, wide
from .emulation import Emulation, Forward
from .impls import HALF, Impl
from .law import FORWARD, GRADIENT, VARIANTS, Verdict, emulated_squares, enforce, judge
from .threads import threads


@threads(1)
def exact_forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """The oracle: out (batch, seqlen_q, nheads, dv) and lse (2, batch, nheads, seqlen_q), fp64."""
    p = problem.exact()
    return reference.diff_flash_attn_func(p.q, p.k, p.v, p.lam, **p.options(), return_lse=True)


@threads(1)
def forward_verdict(got: Tensor, problem: Problem, exact: Tensor | None = None) -> Verdict:
    """Rows of an output (batch, seqlen_q, nheads, dv)."""
    exact = exact_forward(problem)[0] if exact is None else exact
    runs = [Emulation(problem, variant).forward() for variant in range(VARIANTS)]
    emulated = [run.y.transpose(1, 2) for run in runs]
    gain = runs[0].rstd[..., 0].transpose(1, 2)
    squares = emulated_squares(exact, emulated, (0, 2), problem.q.dtype not in HALF, gain)
    squares = torch.maximum(squares, _subtraction_floor(runs[0], problem).square())
    return judge("out", got, exact, squares, exact.cpu().norm(dim=-1), FORWARD)


def _subtraction_floor(run: Forward, problem: Problem) -> Tensor:
    """Error of O1 - lambda O2 in the accumulator: its unit roundoff times the terms.

    Where the maps are equal, or a row has one key, O1 and O2 of the emulation have equal errors,
    which cancel by luck and not by right: any other order of the same operations keeps them.
    """
    unit = torch.finfo(wide(problem.q.dtype)).eps / 2
    floor = unit * run.terms * run.rstd[..., 0] * abs(problem.out_scale)
    if problem.norm_weight is not None:
        floor = floor * float(problem.norm_weight.detach().abs().max())
    return floor.double().transpose(1, 2)


@threads(1)
def check_lse(lse: Tensor, exact: Tensor, problem: Problem) -> None:
    """Each LSE within the error bound of its dot products; -inf exactly where no key is seen.

    One LSE is one number, so it gets the classical bound instead of a measured one: a dot product
    of width d errs by at most d u sum|q k|, and the logarithm adds a few u of its own.
    """
    assert lse.shape == exact.shape and lse.dtype == wide(problem.q.dtype)
    lse, empty = lse.detach().cpu().double(), exact.cpu() == -torch.inf
    assert bool((lse[empty] == -torch.inf).all()), "the LSE of a row without keys is not -inf"
    q, k = problem.q.detach().double().abs(), problem.k.detach().double().abs()
    k = k.expand(*k.shape[:3], 2, k.shape[-1])
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    size = torch.einsum("bihcd,bjhcd->cbhij", q, k) * abs(problem.softmax_scale())
    size = size.amax(-1) if size.shape[-1] else size.sum(-1)
    unit = torch.finfo(wide(problem.q.dtype)).eps / 2
    allowed = unit * ((q.shape[-1] + 4) * size.cpu() + 8 * (1 + exact.cpu().abs()))
    error = (lse - exact.cpu()).abs()
    bad = ~empty & ~(error <= allowed)
    assert not bool(bad.any()), f"LSE off at {bad.nonzero()[0].tolist()}: {error[bad][0]:.3e}"


def check_forward(impl: Impl, problem: Problem, five_d: bool = False) -> None:
    """Out and LSE of the dense function, from 4-D (flat heads) or 5-D q and k."""
    q, k = (problem.q, problem.k) if five_d else (flat(problem.q), flat(problem.k))
    out, lse = impl.func(q, k, problem.v, problem.lam, **problem.options(), return_lse=True)
    check_answer(out, lse, problem)


def check_answer(out: Tensor, lse: Tensor, problem: Problem) -> None:
    """Out and LSE that some function gave for the rows of a dense problem."""
    assert out.dtype == problem.q.dtype and out.device == problem.q.device
    exact, exact_lse = exact_forward(problem)
    enforce(forward_verdict(out, problem, exact))
    check_lse(lse, exact_lse, problem)


@threads(1)
def check_saved(saved: dict[str, Tensor], problem: Problem) -> None:
    """What a training forward keeps for backward: o before the norm, o2 and rstd."""
    p = problem.exact()
    runs = [Emulation(problem, variant).forward() for variant in range(VARIANTS)]
    plain = p.but(norm_weight=None, norm_eps=None, out_scale=1.0)
    o = exact_forward(plain)[0]
    # O = O1 - lambda O2 is linear in lambda.
    o1 = exact_forward(plain.but(lam=0.0))[0]
    turned = o1 - exact_forward(plain.but(lam=1.0))[0] + p.lam_rows(torch.float64)[..., None] * o1
    for name, exact, emulated in (
        ("o", o, [run.out for run in runs]),
        ("o2", turned, [run.turned for run in runs]),
    ):
        if name in saved:
            squares = emulated_squares(exact, [run.transpose(1, 2) for run in emulated], (0, 2))
            enforce(judge(name, saved[name], exact, squares, exact.norm(dim=-1), FORWARD))
    if "rstd" in saved:
        assert p.norm_eps is not None
        rstd = torch.rsqrt(o.square().mean(-1) + p.norm_eps).transpose(1, 2)
        torch.testing.assert_close(saved["rstd"].double(), rstd, rtol=2e-2, atol=0)


def leaves(problem: Problem) -> tuple[Problem, dict[str, Tensor]]:
    """The problem on fresh leaf tensors that ask for a gradient, and those leaves by name."""
    names = ["q", "k", "v", "lam", "norm_weight"]
    found: dict[str, Tensor] = {}
    for name in names:
        value: Any = getattr(problem, name)
        if isinstance(value, Tensor):
            found[name] = value.detach().clone().requires_grad_()
    return problem.but(**found), found


def run_backward(function: Any, problem: Problem, **extra: Any) -> dict[str, Tensor]:
    """Gradients of <out, dout> + <lse, dlse> by autograd, named as the problem's fields."""
    p, named = leaves(problem)
    if p.dlse is not None:
        extra["return_lse"] = True
    result = function(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), **extra)
    out, *lse = result if p.dlse is not None else (result,)
    given = [p.dout.to(out.dtype), p.dlse][: 1 + len(lse)]
    grads = torch.autograd.grad((out, *lse), list(named.values()), given)
    return dict(zip(named, grads, strict=True))


@threads(1)
def gradient_verdicts(got: dict[str, Tensor], problem: Problem) -> list[Verdict]:
    """One verdict for each gradient in `got`."""
    exact_problem = problem.exact()
    exact_problem = exact_problem.but(lam=exact_problem.lam_rows(torch.float64))
    exact = run_backward(reference.diff_flash_attn_func, exact_problem)
    exact = {name: gradient.cpu() for name, gradient in exact.items()}
    runs = [Emulation(problem, variant).backward() for variant in range(VARIANTS)]
    verdicts = []
    for name, gradient in got.items():
        emulated = [run[name] for run in runs]
        if name == "lam":
            verdicts.append(_lam_verdict(gradient, exact[name], emulated))
            continue
        shared = {"q": (0, 2, 3), "k": (0, 2, 3), "v": (0, 2)}.get(name, ())
        wide_dtype = gradient.dtype not in HALF
        squares = emulated_squares(exact[name], emulated, shared, wide_dtype)
        size = exact[name].norm(dim=-1)
        verdicts.append(judge(f"d{name}", gradient, exact[name], squares, size, GRADIENT))
    return verdicts


def _lam_verdict(got: Tensor, exact: Tensor, emulated: list[Tensor]) -> Verdict:
    """dlambda in lambda's own shape, from (batch, seqlen_q, nheads) oracle and emulations.

    Per token, a row is the queries of one head. Otherwise each entry is a sum over rows: its
    error is the sum of their independent errors, so its variance is the sum of theirs, and its
    size is their norm before any cancellation.
    """
    if got.dtype in HALF:  # a lambda given in 16 bits gets its gradient rounded to them
        emulated = [e.to(got.dtype).to(exact.dtype) for e in emulated]
    if got.dim() == 3:
        squares = emulated_squares(exact.mT, [e.mT for e in emulated])
        squares = torch.maximum(squares, squares.mean())  # heads are draws of one distribution
        return judge("dlam", got.mT, exact.mT, squares, exact.mT.norm(dim=-1), GRADIENT)
    sums = (1, 1, got.numel())
    squares = emulated_squares(exact[..., None], [e[..., None] for e in emulated]).sum_to_size(sums)
    total, size = exact.sum_to_size(sums), exact.square().sum_to_size(sums).sqrt()
    column = (got.numel(), 1)
    return judge("dlam", got.reshape(column), total.reshape(column), squares.reshape(-1),
                 size.reshape(-1), GRADIENT)  # fmt: skip


def check_backward(impl: Impl, problem: Problem, **extra: Any) -> None:
    got = run_backward(impl.func, problem, **extra)
    for verdict in gradient_verdicts(got, problem):
        enforce(verdict)
