"""NaN containment, bitwise determinism, and tensors without elements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cache import KINDS, make_cache
from support.case import DTYPES, Case, short
from support.checks import run_backward
from support.data import Problem, flat, make_problem
from support.emulation import visible
from support.impls import Impl
from support.threads import threads
from torch import Tensor

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (20, 5)},
    "causal_window": {"causal": True, "window": (33, 0)},
}
MASK = pytest.mark.parametrize("mask", list(MASKS))
contained = pytest.mark.needs("contains_nan")
contained_backward = pytest.mark.needs("contains_nan_backward")


def _problem(impl: Impl, dtype: torch.dtype, mask: str, **changes: Any) -> Problem:
    case = Case(sq=130, sk=150, heads=4, heads_k=2, dtype=dtype, lam="token", **MASKS[mask])
    return make_problem(case.but(**changes), impl.device)


def _run(impl: Impl, p: Problem) -> tuple[Tensor, Tensor]:
    out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
    return out, lse.permute(1, 3, 2, 0)  # rows first, as out


def _only_these_rows(rows: Tensor, clean: Tensor, dirty: Tensor, all_nan: bool = True) -> None:
    """rows (batch, seqlen_q, nheads) may change, and are NaN; all others are bitwise equal."""
    rows = rows.to(clean.device)
    assert torch.equal(clean[~rows], dirty[~rows])
    if all_nan:
        assert bool(dirty[rows].isnan().all())


@contained
@DTYPE
@MASK
@pytest.mark.parametrize("component", [0, 1])
@pytest.mark.parametrize("row", [0, 15, 64, 129])
def test_nan_in_a_query_reaches_its_row(
    impl: Impl, dtype: torch.dtype, mask: str, component: int, row: int
) -> None:
    p = _problem(impl, dtype, mask)
    q = p.q.clone()
    q[1, row, 2, component, 7] = torch.nan
    rows = torch.zeros(2, 130, 4, dtype=torch.bool)
    rows[1, row, 2] = visible(130, 150, p)[row].any()
    for clean, dirty in zip(_run(impl, p), _run(impl, p.but(q=q)), strict=True):
        _only_these_rows(rows, clean, dirty, all_nan=clean.shape[-1] != 2)


def _of_the_same_tiles(seen: Tensor, key: int, tile_rows: int, tile_keys: int) -> Tensor:
    """Rows of tiles in which some row sees some key of the tile that holds `key`."""
    first = key - key % tile_keys
    blocks = seen[:, first : first + tile_keys].any(1).split(tile_rows)
    return torch.cat([block.any().expand(len(block)) for block in blocks])


@contained
@DTYPE
@MASK
@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("key", [0, 16, 63, 64, 100, 149])
def test_nan_in_a_key_reaches_the_rows_that_see_it(
    impl: Impl, dtype: torch.dtype, mask: str, where: str, key: int
) -> None:
    """0 * NaN is NaN: a masked key must not be multiplied at all."""
    p = _problem(impl, dtype, mask)
    poisoned = getattr(p, where).clone()
    poisoned[1, key, 1] = torch.nan
    rows = torch.zeros(2, 130, 4, dtype=torch.bool)
    rows[1, :, 2:] = visible(130, 150, p)[:, key, None]
    clean, dirty = _run(impl, p), _run(impl, p.but(**{where: poisoned}))
    assert bool(dirty[0][rows].isnan().all())
    _only_these_rows(rows if where == "k" else rows & False, clean[1], dirty[1])
    if where == "v":
        rows[1, :, 2:] = _of_the_same_tiles(visible(130, 150, p), key, *impl.tile)[:, None]
    _only_these_rows(rows, clean[0], dirty[0], all_nan=False)


@contained
@DTYPE
@pytest.mark.parametrize("norm", ["none", "affine"])
def test_nan_lambda_reaches_its_token_and_head(impl: Impl, dtype: torch.dtype, norm: str) -> None:
    p = _problem(impl, dtype, "full", norm=norm)
    assert isinstance(p.lam, Tensor)
    lam = p.lam.clone()
    lam[0, 77, 3] = torch.nan
    rows = torch.zeros(2, 130, 4, dtype=torch.bool)
    rows[0, 77, 3] = True
    clean, dirty = _run(impl, p), _run(impl, p.but(lam=lam))
    _only_these_rows(rows, clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


@contained_backward
@DTYPE
@pytest.mark.parametrize("where", ["q", "lam", "dout"])
def test_nan_of_a_row_reaches_only_its_gradients(
    impl: Impl, dtype: torch.dtype, where: str
) -> None:
    """dq and dlambda of other rows, and dk, dv of unseen keys and other heads, keep their bits."""
    p = _problem(impl, dtype, "causal")
    row, poisoned = 40, getattr(p, where).clone()
    poisoned[1, row, 2] = torch.nan
    clean, dirty = run_backward(impl.func, p), run_backward(impl.func, p.but(**{where: poisoned}))
    rows = torch.zeros(2, 130, 4, dtype=torch.bool, device=impl.device)
    rows[1, row, 2] = True
    assert torch.equal(clean["lam"][~rows], dirty["lam"][~rows])
    # Without a norm dlambda = -<dO, O2> does not hold lambda itself.
    assert bool(dirty["lam"][rows].isnan().all()) == (where != "lam")
    dq, dirty_dq = (x["q"].unflatten(2, (4, 2)) if x["q"].dim() == 4 else x["q"]
                    for x in (clean, dirty))  # fmt: skip
    assert torch.equal(dq[~rows], dirty_dq[~rows])
    first = 1 if where == "lam" else 0  # nor does <dO, O1>, all that component 1 needs of O
    assert bool(dirty_dq[rows][:, first:].isnan().all())
    keys = torch.zeros(2, 150, 2, dtype=torch.bool, device=impl.device)
    keys[1, :, 1] = visible(130, 150, p)[row].to(impl.device)
    for name in ("k", "v"):
        assert torch.equal(clean[name][~keys], dirty[name][~keys]), name
        reached = dirty[name][keys]
        reached = reached[:, first:] if name == "k" else reached
        assert bool(reached.isnan().all()), name


@contained_backward
@DTYPE
def test_nan_of_an_unseen_key_reaches_no_gradient(impl: Impl, dtype: torch.dtype) -> None:
    p = _problem(impl, dtype, "causal", sq=100, sk=60)
    p = p.but(window=(10, 0), q=p.q[:, :40], dout=p.dout[:, :40], lam=0.5)  # keys 0..9 unseen
    assert not bool(visible(40, 60, p)[:, :10].any())
    k, v = p.k.clone(), p.v.clone()
    k[:, :10] = v[:, :10] = torch.nan
    clean, dirty = run_backward(impl.func, p), run_backward(impl.func, p.but(k=k, v=v))
    for name, gradient in clean.items():
        assert torch.equal(gradient, dirty[name]), name
    assert bool((clean["k"][:, :10] == 0).all() and (clean["v"][:, :10] == 0).all())


@contained
@DTYPE
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinities_do_not_crash(impl: Impl, dtype: torch.dtype, value: float) -> None:
    p = _problem(impl, dtype, "causal")
    k = p.k.clone()
    k[0, 60, 0, 0, 0] = value
    rows = torch.zeros(2, 130, 4, dtype=torch.bool)
    rows[0, :, :2] = visible(130, 150, p)[:, 60, None]
    clean, dirty = _run(impl, p), _run(impl, p.but(k=k))
    _only_these_rows(rows, clean[0], dirty[0], all_nan=False)


@pytest.mark.needs("same_bits")
@DTYPE
@pytest.mark.parametrize("deterministic", [False, True])
def test_five_runs_and_any_threads_give_the_same_bits(
    impl: Impl, dtype: torch.dtype, deterministic: bool
) -> None:
    """B = H = 1 and many heads: work is split differently, sums are not. Atomics need the flag."""
    for batch, heads in [(1, 1), (2, 3)]:
        p = _problem(impl, dtype, "causal", batch=batch, heads=heads, heads_k=1, norm="affine")
        forward, backward = _run(impl, p), None
        for run in range(5):
            with threads(1 + run % 2):
                again = _run(impl, p)
                assert all(torch.equal(a, b) for a, b in zip(again, forward, strict=True))
                if deterministic or impl.device.type == "cpu":
                    grads = run_backward(impl.func, p, deterministic=deterministic)
                    backward = backward or grads
                    for name, gradient in grads.items():
                        assert torch.equal(gradient, backward[name]), name


@DTYPE
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_same_bits_for_any_threads(
    impl: Impl, dtype: torch.dtype, kind: str
) -> None:
    p = make_cache(Case(sq=1, dtype=dtype, heads=4, heads_k=1), impl, kind, [256, 3, 100])
    call = p.problem
    runs = []
    for run in range(5):
        with threads(1 + run % 2):
            runs.append(impl.kvcache(flat(call.q), p.k, p.v, 0.5, **p.arguments))
    assert all(torch.equal(run, runs[0]) for run in runs)


EMPTY = {
    "no_batch": {"batch": 0},
    "no_queries": {"sq": 0},
    "no_keys": {"sk": 0},
    "neither": {"sq": 0, "sk": 0},
}


@DTYPE
@pytest.mark.parametrize("norm", ["none", "affine"])
@pytest.mark.parametrize("lam", ["token", "head", "scalar"])
@pytest.mark.parametrize("empty", list(EMPTY))
def test_empty_tensors(impl: Impl, dtype: torch.dtype, empty: str, lam: str, norm: str) -> None:
    """Empties in the right shape, zeros and -inf where there is no key, and zero gradients."""
    case = Case(dtype=dtype, lam=lam, norm=norm, causal=True).but(**EMPTY[empty])
    p = make_problem(case, impl.device)
    out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
    assert out.shape == (case.batch, case.sq, 2, 64) and out.dtype == dtype
    assert lse.shape == (2, case.batch, 2, case.sq)
    assert bool((out == 0).all()) and bool((lse == -torch.inf).all())
    gradients = run_backward(impl.func, p)
    for name, gradient in gradients.items():
        assert gradient.shape == getattr(p, name).shape and bool((gradient == 0).all()), name


@DTYPE
@pytest.mark.parametrize("norm", ["none", "affine"])
def test_rows_without_keys_have_zero_gradients(impl: Impl, dtype: torch.dtype, norm: str) -> None:
    p = make_problem(Case(sq=90, sk=20, dtype=dtype, causal=True, lam="token", norm=norm),
                     impl.device)  # fmt: skip
    grads = run_backward(impl.func, p)
    assert bool((grads["q"][:, :70] == 0).all()) and bool((grads["lam"][:, :70] == 0).all())
    assert all(bool(gradient.isfinite().all()) for gradient in grads.values())
    if not impl.contains_nan_backward:
        return
    # A NaN in a query that sees nothing goes nowhere.
    poisoned = p.q.clone()
    poisoned[:, :70] = torch.nan
    again = run_backward(impl.func, p.but(q=poisoned))
    assert all(torch.equal(again[name], gradient) for name, gradient in grads.items())


@DTYPE
def test_outputs_are_written_over_dirty_memory(impl: Impl, dtype: torch.dtype) -> None:
    """The allocator hands out freed NaNs: every element of every result has to be written."""
    p = make_problem(Case(sq=66, sk=30, dtype=dtype, causal=True, norm="plain"), impl.device)
    expected = run_backward(impl.func, p)
    for _ in range(3):
        for tensor in [p.q, p.k, p.v, p.dout]:
            dirty = [torch.full_like(tensor, torch.nan) for _ in range(4)]
            del dirty
        got = run_backward(impl.func, p)
        assert all(torch.equal(got[name], gradient) for name, gradient in expected.items())
        out, lse = _run(impl, p)
        assert bool(out.isfinite().all()) and not bool(lse.isnan().any())
