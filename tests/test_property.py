"""Random arguments: legal ones agree with the reference, illegal ones raise, nothing crashes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.cache import KINDS, make_cache
from support.case import LAMBDAS, REGIMES, WIDTHS, Case
from support.checks import check_answer, check_backward, check_forward
from support.data import flat, make_problem
from support.impls import Impl

pytestmark = pytest.mark.needs("has_ops")


@st.composite
def legal(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...], longest: int) -> Case:
    """Any legal dense call up to `longest` queries and keys."""
    heads_k = draw(st.integers(1, 3))
    d = draw(st.sampled_from(WIDTHS))
    bound = st.integers(-1, longest)
    return Case(
        batch=draw(st.integers(0, 3)),
        sq=draw(st.integers(0, longest)),
        sk=draw(st.integers(0, longest)),
        heads=heads_k * draw(st.integers(1, 3)),
        heads_k=heads_k,
        d=d,
        dv=d * draw(st.integers(1, 2)),
        dtype=draw(st.sampled_from(dtypes)),
        causal=draw(st.booleans()),
        window=(draw(bound), draw(bound)),
        shared_k=draw(st.booleans()),
        lam=draw(st.sampled_from(LAMBDAS)),
        norm=draw(st.sampled_from(["none", "plain", "affine"])),
        out_scale=draw(st.sampled_from([1.0, 0.2, -1.5])),
        scale=draw(st.sampled_from([None, 0.05, 0.3])),
        regime=draw(st.sampled_from(REGIMES)),
        seed=draw(st.integers(0, 1000)),
    )


@given(data=st.data())
def test_legal_forward(impl: Impl, data: st.DataObject) -> None:
    case = data.draw(legal(impl.dtypes, 150))
    check_forward(impl, make_problem(case, impl.device), five_d=case.seed % 2 == 0)


@given(data=st.data())
def test_legal_backward(impl: Impl, data: st.DataObject) -> None:
    case = data.draw(legal(impl.dtypes, 80))
    # 1 - 1 = 0, times 1/sqrt(eps): the law has nothing to measure but magnified rounding noise.
    assume(case.lam != "one" or case.norm == "none")
    check_backward(impl, make_problem(case, impl.device))


@given(data=st.data())
def test_legal_decode(impl: Impl, data: st.DataObject) -> None:
    case = data.draw(legal(impl.dtypes, 70))
    assume(case.batch > 0)
    new = data.draw(st.integers(0, 40))
    lengths = data.draw(st.lists(st.integers(0, 100), min_size=case.batch, max_size=case.batch))
    pads = [data.draw(st.integers(0, length)) for length in lengths]
    cache = make_cache(case, impl, data.draw(st.sampled_from(KINDS)), lengths, pads, capacity=160)
    p = cache.problem
    extra: dict[str, Any] = {"num_splits": data.draw(st.integers(0, 9))} | p.options()
    if new:
        extra |= {"k": flat(p.k)[:, :new], "v": p.v[:, :new]}
    out, lse = impl.kvcache(flat(p.q), cache.k, cache.v, p.lam, **cache.arguments, **extra,
                            return_lse=True)  # fmt: skip
    for i in range(case.batch):
        row = slice(i, i + 1)
        check_answer(out[row], lse[:, row], cache.visible(i, new))


DTYPES = [torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]


@st.composite
def any_tensor(draw: st.DrawFn) -> torch.Tensor | float | None:
    """A tensor of some small shape, dtype and strides, or no tensor at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from([None, 0.5]))
    sizes: st.SearchStrategy[int] = st.sampled_from([0, 1, 2, 3, 4, 8, 16])
    shape = [draw(sizes) for _ in range(draw(st.integers(0, 5)))]
    tensor = torch.zeros(shape, dtype=draw(st.sampled_from(DTYPES)))
    turned = draw(st.booleans())
    return tensor.movedim(-1, 0) if shape and turned else tensor


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "softmax_scale": st.sampled_from([None, 0.0, float("nan"), float("inf"), -1.0, "x"]),
    "causal": st.booleans(),
    "window_size": st.one_of(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), st.none(),
                             st.just((2**62, 2**62)), st.just((1,))),
    "norm_weight": st.one_of(st.none(), any_tensor()),
    "norm_eps": st.sampled_from([None, 0.0, 1e-5, -1.0, float("nan"), "x"]),
    "out_scale": st.sampled_from([1.0, float("inf"), None]),
    "return_lse": st.booleans(),
}  # fmt: skip


@settings(max_examples=250)
@given(data=st.data())
def test_wild_dense_arguments_never_crash(impl: Impl, data: st.DataObject) -> None:
    """One or two arguments of a legal call replaced by anything: an error, or a result."""
    p = make_problem(Case(batch=2, sq=4, sk=3, d=8, dv=16), impl.device)
    args: dict[str, Any] = {"q": flat(p.q), "k": flat(p.k), "v": p.v, "lam": 0.5}
    wild = OPTIONS | {name: any_tensor() for name in args}
    for name in data.draw(st.lists(st.sampled_from(sorted(wild)), min_size=1, max_size=2)):
        args[name] = data.draw(wild[name])
    _result_or_error(impl.func, args)


@settings(max_examples=250)
@given(data=st.data())
def test_wild_packed_arguments_never_crash(impl: Impl, data: st.DataObject) -> None:
    p = make_problem(Case(batch=1, sq=7, sk=7, d=8, dv=16), impl.device)
    ends = st.lists(st.integers(-3, 12), min_size=0, max_size=5)
    args: dict[str, Any] = {"q": flat(p.q)[0], "k": flat(p.k)[0], "v": p.v[0], "lam": 0.5}
    for side in "qk":
        listed = data.draw(st.one_of(st.just([0, 3, 7]), ends))
        args[f"cu_seqlens_{side}"] = torch.tensor(listed, dtype=torch.int32)
        args[f"max_seqlen_{side}"] = data.draw(st.sampled_from([4, 7, 0, 3, -1, 10**4]))
    name = data.draw(st.sampled_from(["q", "k", "v", "lam", "causal"]))
    args[name] = data.draw(any_tensor()) if data.draw(st.booleans()) else args.get(name, True)
    _result_or_error(impl.varlen, args)


@settings(max_examples=250)
@given(data=st.data())
def test_wild_cache_arguments_never_crash(impl: Impl, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["plain", "indexed", "paged16"]))
    cache = make_cache(Case(sq=2, d=8, dv=16), impl, kind, [5, 20], [1, 0], capacity=32)
    p = cache.problem
    args: dict[str, Any] = {"q": flat(p.q), "k_cache": cache.k, "v_cache": cache.v, "lam": 0.5,
                            "k": flat(p.k)[:, :2], "v": p.v[:, :2], **cache.arguments}  # fmt: skip
    tables = st.lists(st.integers(-9, 40), min_size=2, max_size=2)
    wild: dict[str, Any] = OPTIONS | {name: any_tensor() for name in args}
    for name in ("cache_seqlens", "cache_batch_idx", "cache_leftpad"):
        wild[name] = tables.map(lambda x: torch.tensor(x, dtype=torch.int32))
    wild["block_table"] = st.tuples(tables, tables).map(lambda x: torch.tensor(x).int())
    wild["num_splits"] = st.sampled_from([0, 1, 2, 1000, -1, 2**40])
    for name in data.draw(st.lists(st.sampled_from(sorted(wild)), min_size=1, max_size=3)):
        args[name] = data.draw(wild[name])
    _result_or_error(impl.kvcache, args)


def _result_or_error(function: Any, args: dict[str, Any]) -> None:
    try:
        result = function(**args)
    except (ValueError, TypeError, RuntimeError):
        return
    out = result[0] if isinstance(result, tuple) else result
    assert isinstance(out, torch.Tensor) and out.dtype == args["q"].dtype
