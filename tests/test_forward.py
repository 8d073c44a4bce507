"""The forward under the law of tolerance: regimes, shapes, masks, heads, lambdas, the norm."""

from __future__ import annotations

import pytest
import torch
from support.case import DTYPES, LAMBDAS, LENGTHS, REGIMES, WIDTHS, Case, pairwise_cases, short
from support.checks import check_forward, exact_forward
from support.data import flat, make_problem, wide
from support.impls import Impl

WINDOWS = [(-1, -1), (16, 0), (0, 0), (3, 5), (-1, 4), (7, -1), (63, 64)]
HEADS = [(1, 1), (2, 1), (2, 2), (4, 2), (6, 2), (3, 1)]


def _everything() -> list[Case]:
    """All pairs of all options: each length meets each width, mask, head count, dtype, ..."""
    return pairwise_cases(
        40_000, sq=LENGTHS, sk=LENGTHS, d=WIDTHS, window=WINDOWS, heads=HEADS, batch=[1, 3]
    )


@pytest.mark.parametrize("case", _everything(), ids=str)
def test_every_pair_of_options(impl: Impl, case: Case) -> None:
    check_forward(impl, make_problem(case, impl.device), five_d=case.seed % 2 == 1)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", [(64, 128), (128, 128), (128, 256)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_regimes(
    impl: Impl, dtype: torch.dtype, shape: tuple[int, int], causal: bool, regime: str
) -> None:
    """The shapes people train, in every regime and dtype."""
    case = Case(batch=1, sq=130, sk=130, d=shape[0], dv=shape[1], dtype=dtype, lam="token")
    case = case.but(causal=causal, regime=regime, shared_k=shape[0] == shape[1])
    check_forward(impl, make_problem(case, impl.device))


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("double", [True, False], ids=["dv=2d", "dv=d"])
def test_every_width(impl: Impl, d: int, double: bool) -> None:
    dtype = [x for x in DTYPES if x in impl.dtypes][d // 8 % len(impl.dtypes)]
    case = Case(batch=1, sq=33, sk=70, d=d, dv=d * (1 + double), dtype=dtype, causal=True)
    check_forward(impl, make_problem(case, impl.device))


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("norm", ["none", "affine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=short)
def test_every_lambda(impl: Impl, lam: str, norm: str, dtype: torch.dtype) -> None:
    case = Case(sq=31, sk=31, heads=3, heads_k=3, lam=lam, norm=norm, dtype=dtype, causal=True)
    check_forward(impl, make_problem(case, impl.device))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_lambda_is_not_rounded_to_the_input_dtype(impl: Impl, dtype: torch.dtype) -> None:
    """1.003 is 1.0 in bf16 and 1.0029 in fp16; with equal maps O = -0.003 V, which shows it."""
    case = Case(sq=40, sk=40, dtype=dtype, regime="init")
    problem = make_problem(case, impl.device)
    same = problem.q.clone()
    same[:, :, :, 1] = same[:, :, :, 0]
    keys = problem.k.clone()
    keys[:, :, :, 1] = keys[:, :, :, 0]
    check_forward(impl, problem.but(q=same, k=keys, lam=1.003))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_equal_maps_and_lambda_one_cancel(impl: Impl, dtype: torch.dtype) -> None:
    """O1 - O2 of two equal maps is zero to the accumulator's rounding, not to the dtype's."""
    problem = make_problem(Case(sq=70, sk=70, dtype=dtype, causal=True), impl.device)
    q = problem.q[:, :, :, :1].expand(-1, -1, -1, 2, -1)
    k = problem.k[:, :, :, :1].expand(-1, -1, -1, 2, -1)
    out = impl.func(q, k, problem.v, 1.0, causal=True)
    unit = torch.finfo(wide(dtype)).eps / 2
    assert float(out.abs().max()) <= 4 * unit * float(problem.v.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize(("sq", "sk"), [(5, 9), (9, 5)])
def test_causal_is_aligned_bottom_right(impl: Impl, dtype: torch.dtype, sq: int, sk: int) -> None:
    """The last query sees the last key; queries before the first key see nothing."""
    problem = make_problem(Case(batch=1, sq=sq, sk=sk, dtype=dtype, causal=True), impl.device)
    out, lse = impl.func(flat(problem.q), flat(problem.k), problem.v, 0.3, causal=True,
                         return_lse=True)  # fmt: skip
    blind = max(sq - sk, 0)
    assert bool((out[:, :blind] == 0).all()) and bool((out[:, blind:] != 0).any(-1).all())
    assert bool((lse[..., :blind] == -torch.inf).all()) and bool(lse[..., blind:].isfinite().all())
    first, _ = exact_forward(problem.but(q=problem.q[:, -1:], causal=False, lam=0.3))
    torch.testing.assert_close(out[:, -1:].double().cpu(), first.cpu(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_return_lse_false_gives_the_same_output(impl: Impl, dtype: torch.dtype) -> None:
    problem = make_problem(Case(dtype=dtype, norm="affine", causal=True), impl.device)
    args = (flat(problem.q), flat(problem.k), problem.v, problem.lam)
    out, lse = impl.func(*args, **problem.options(), return_lse=True)
    alone = impl.func(*args, **problem.options())
    assert isinstance(alone, torch.Tensor) and torch.equal(out, alone)
    assert lse.shape == (2, 2, 2, 65)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_narrow_norm_weight(impl: Impl, dtype: torch.dtype) -> None:
    """norm_weight in the module's own dtype, as a model cast to 16 bits has it."""
    problem = make_problem(Case(dtype=dtype, norm="affine"), impl.device)
    assert problem.norm_weight is not None
    check_forward(impl, problem.but(norm_weight=problem.norm_weight.to(dtype)))


def test_inputs_are_not_modified(impl: Impl) -> None:
    problem = make_problem(Case(dtype=impl.dtypes[0], norm="affine", lam="token"), impl.device)
    named = {name: value for name, value in vars(problem).items() if torch.is_tensor(value)}
    before = {name: value.clone() for name, value in named.items()}
    impl.func(flat(problem.q), flat(problem.k), problem.v, problem.lam, **problem.options())
    for name, value in named.items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_large_logits_do_not_overflow(impl: Impl, dtype: torch.dtype) -> None:
    """Logits of +-1e3: exp2(fma) with a separately rounded maximum gave inf elsewhere."""
    case = Case(sq=65, sk=129, dtype=dtype, regime="sharp", scale=10.0)
    problem = make_problem(case, impl.device)
    out = impl.func(flat(problem.q), flat(problem.k), problem.v, 0.8, softmax_scale=10.0)
    assert bool(out.isfinite().all())


def test_a_negative_scale(impl: Impl) -> None:
    """A maximum taken before scaling is the wrong one for s < 0."""
    for dtype in impl.dtypes:
        case = Case(sq=20, sk=70, dtype=dtype, scale=-0.2, causal=True)
        check_forward(impl, make_problem(case, impl.device))
