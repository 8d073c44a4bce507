"""torch.library: opcheck, torch.compile, autocast, vmap, fake tensors and export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cache import Cache, make_cache, rotary_tables
from support.case import DTYPES, Case, short
from support.checks import check_forward, run_backward
from support.data import Problem, flat, make_problem
from support.impls import Impl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = [pytest.mark.needs(what) for what in ("has_ops", "traces")]
CASES = [
    Case(sq=9, sk=12, causal=True, lam="token"),
    Case(sq=9, sk=12, norm="affine", lam="scalar", heads=4, heads_k=2),
    Case(sq=9, sk=12, shared_k=True, d=16, dv=16, norm="plain", window=(3, 2), lam="head"),
    Case(sq=0, sk=12, norm="affine"),
    Case(sq=5, sk=0, lam="token"),
    Case(
        sq=9, sk=12, heads=4, heads_k=2, causal=True, window=(2, 0), sink=3, streaming=(True, False)
    ),
]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def op_arguments(p: Problem, training: bool, packed: Tensor | None = None) -> tuple[Any, ...]:
    """The arguments of torch.ops.diffattn.fwd for a problem."""
    lam = p.lam_rows(torch.float32).contiguous()
    tensors = (p.q, p.k, p.v, lam)
    if packed is not None:
        tensors = tuple(x[0].detach().clone() for x in tensors)  # type: ignore[assignment]
    if training:
        tensors = tuple(x.detach().clone().requires_grad_() for x in tensors)  # type: ignore[assignment]
    longest = (p.q.shape[1], p.k.shape[1]) if packed is not None else (0, 0)
    return (*tensors, p.norm_weight, packed, packed, *longest, p.softmax_scale(), *p.mask(),
            p.norm_eps, p.out_scale, False, training)  # fmt: skip


@EVERY
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_opcheck_forward(impl: Impl, case: Case, training: bool) -> None:
    p = make_problem(case.but(dtype=impl.dtypes[0]), impl.device)
    torch.library.opcheck(torch.ops.diffattn.fwd, op_arguments(p, training))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_opcheck_forward_packed(impl: Impl, training: bool) -> None:
    p = make_problem(Case(batch=1, sq=9, sk=9, dtype=impl.dtypes[0], norm="affine"), impl.device)
    cu = torch.tensor([0, 4, 4, 9], dtype=torch.int32, device=impl.device)
    torch.library.opcheck(torch.ops.diffattn.fwd, op_arguments(p, training, cu))


@EVERY
def test_opcheck_backward(impl: Impl, case: Case) -> None:
    p = make_problem(case.but(dtype=impl.dtypes[0]), impl.device)
    q, k, v, lam, weight, *options, _ = op_arguments(p, True)
    out, lse, o, o2, rstd = torch.ops.diffattn.fwd(q, k, v, lam, weight, *options, True)
    saved = (x.detach() for x in (q, k, v, lam))
    o = out if o.numel() == 0 else o
    args = (p.dout, None, *saved, weight, o.detach(), o2, lse.detach(), rstd, *options)
    torch.library.opcheck(torch.ops.diffattn.bwd, args)


@pytest.mark.parametrize("kind", ["plain", "indexed", "paged16"])
def test_opcheck_decode(impl: Impl, kind: str) -> None:
    case = Case(sq=2, dtype=impl.dtypes[0], causal=True)
    cache = make_cache(case, impl, kind, [10, 0], [4, 0], capacity=32)
    p, a = cache.problem, cache.arguments
    for tensor in (cache.k, cache.v):
        tensor.nan_to_num_(0.0)  # opcheck compares with ==
    cos, sin = rotary_tables(64, 16, p.q)
    k, v = (x.unflatten(2, (1, -1)) if x is cache.k else x for x in (cache.k, cache.v))
    args = (p.q, k, v, p.lam_rows(torch.float32).contiguous(), p.k[:, :2], p.v[:, :2], cos, sin,
            a["cache_seqlens"], a.get("cache_batch_idx"), a["cache_leftpad"], a.get("block_table"),
            None, 0.2, 3, 0, 2, 0b01, True, None, 1.0, 0)  # fmt: skip
    torch.library.opcheck(torch.ops.diffattn.decode, args)


def compiled(function: Callable[..., Any], backend: str, dynamic: bool) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)


@EVERY
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_equals_eager(impl: Impl, case: Case, dynamic: bool) -> None:
    """Forward and backward through aot_autograd, bit for bit."""
    p = make_problem(case.but(dtype=impl.dtypes[0]), impl.device)
    function = compiled(impl.func, "aot_eager", dynamic)
    args = (flat(p.q), flat(p.k), p.v, p.lam)
    expected = impl.func(*args, **p.options(), return_lse=True)
    got = function(*args, **p.options(), return_lse=True)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    eager = run_backward(impl.func, p)
    for name, gradient in run_backward(function, p).items():
        assert torch.equal(gradient, eager[name]), name


def test_one_dynamic_graph_serves_every_length(impl: Impl) -> None:
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    function = torch.compile(impl.func, fullgraph=True, backend=count, dynamic=True)
    # All sizes of the first call differ: the compiler takes equal ones for one symbol, and a batch
    # of 2 for the number of components.
    base = Case(dtype=impl.dtypes[0], causal=True, norm="affine", heads=4, heads_k=2)
    for sq, sk, batch in [(9, 12, 3), (33, 70, 2), (64, 64, 5), (127, 50, 7)]:
        p = make_problem(base.but(sq=sq, sk=sk, batch=batch), impl.device)
        args = (flat(p.q), flat(p.k), p.v, 0.7)
        got = function(*args, **p.options())
        assert torch.equal(got, impl.func(*args, **p.options()))
    assert graphs == 1


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor(impl: Impl, dynamic: bool) -> None:
    """The default backend, with code of its own around the op; it may fuse, so nearly equal."""
    case = Case(sq=9, sk=12, causal=True, norm="affine", lam="token", dtype=impl.dtypes[-2])
    p = make_problem(case, impl.device)

    def block(q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = impl.func(q * 2, *args, **kwargs)
        return out.sin()

    eager = run_backward(block, p)
    for name, gradient in run_backward(compiled(block, "inductor", dynamic), p).items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_varlen(impl: Impl, dynamic: bool) -> None:
    p = make_problem(Case(batch=1, sq=20, sk=20, dtype=impl.dtypes[0]), impl.device)
    cu = torch.tensor([0, 3, 3, 20], dtype=torch.int32, device=impl.device)
    function = compiled(impl.varlen, "aot_eager", dynamic)
    tensors = [x[0].clone().requires_grad_() for x in (flat(p.q), flat(p.k), p.v)]
    results = []
    for run in (impl.varlen, function):
        out = run(*tensors, 0.7, cu, cu, 17, 17, causal=True)
        results.append((out, *torch.autograd.grad(out, tensors, p.dout[0])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _decode(impl: Impl, kind: str) -> tuple[Cache, Callable[..., Any]]:
    cache = make_cache(Case(sq=2, dtype=impl.dtypes[0], causal=True), impl, kind, [10, 40])
    p = cache.problem
    cos, sin = rotary_tables(256, 16, p.q)

    def call(function: Callable[..., Any], k_cache: Tensor, v_cache: Tensor) -> Tensor:
        out: Tensor = function(
            flat(p.q), k_cache, v_cache, 0.5, k=flat(p.k)[:, :2], v=p.v[:, :2], rotary_cos=cos,
            rotary_sin=sin, causal=True, **cache.arguments,
        )  # fmt: skip
        return out

    return cache, call


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", ["plain", "paged16"])
def test_compiled_decode_writes_the_cache_in_place(impl: Impl, kind: str, backend: str) -> None:
    cache, call = _decode(impl, kind)
    twin_k, twin_v = cache.k.clone(), cache.v.clone()
    expected = call(impl.kvcache, twin_k, twin_v)
    address = cache.k.data_ptr()
    got = call(compiled(impl.kvcache, backend, False), cache.k, cache.v)
    assert torch.equal(got, expected) and cache.k.data_ptr() == address
    assert torch.equal(cache.k.nan_to_num(7.0), twin_k.nan_to_num(7.0))
    assert torch.equal(cache.v.nan_to_num(7.0), twin_v.nan_to_num(7.0))


@pytest.mark.parametrize("lam", ["scalar", "head", "token"])
def test_autocast_keeps_lambda_in_fp32(impl: Impl, lam: str) -> None:
    """q, k, v are cast as a matmul's inputs; a lambda of 1.003 would become 1.0 with them."""
    dtype = torch.bfloat16
    p = make_problem(Case(sq=40, sk=40, lam=lam, regime="init", norm="affine"), impl.device)
    assert isinstance(p.lam, Tensor) and p.lam.dtype == torch.float32
    p = p.but(lam=1.003 - 1e-3 * p.lam)
    cast = p.but(q=p.q.to(dtype), k=p.k.to(dtype), v=p.v.to(dtype), dout=p.dout.to(dtype))

    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(impl.device.type, dtype):
            return impl.func(*args, **kwargs)

    args = (flat(p.q), flat(p.k), p.v, p.lam)
    out, lse = under_autocast(*args, **p.options(), return_lse=True)
    expected, _ = impl.func(*args[:0], flat(cast.q), flat(cast.k), cast.v, cast.lam,
                            **cast.options(), return_lse=True)  # fmt: skip
    assert out.dtype == dtype and lse.dtype == torch.float32 and torch.equal(out, expected)
    got = run_backward(under_autocast, p.but(dout=cast.dout))
    inner = run_backward(impl.func, cast)
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32, name
        assert torch.equal(gradient, inner[name].float()), name


def test_autocast_with_mixed_inputs_and_kvcache(impl: Impl) -> None:
    """k from an fp32 rotary, q and v from bf16 projections: autocast makes them one dtype."""
    p = make_problem(Case(sq=9, sk=12, dtype=torch.bfloat16), impl.device)
    with torch.autocast(impl.device.type, torch.bfloat16):
        out = impl.func(flat(p.q), flat(p.k).float(), p.v, 0.5)
        cache = impl.kvcache(flat(p.q).float(), flat(p.k).clone(), p.v.clone(), 0.5)
    assert torch.equal(out, impl.func(flat(p.q), flat(p.k), p.v, 0.5))
    assert torch.equal(cache, impl.kvcache(flat(p.q), flat(p.k).clone(), p.v.clone(), 0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_fake_tensors(impl: Impl, dtype: torch.dtype) -> None:
    """Shapes, dtypes and strides without a kernel."""
    p = make_problem(Case(sq=9, sk=12, dtype=dtype, norm="affine"), impl.device)
    real = impl.func(flat(p.q), flat(p.k), p.v, 0.5, norm_eps=1e-5, return_lse=True)
    tensors = (flat(p.q), flat(p.k), p.v)
    with FakeTensorMode() as mode:
        q, k, v = (mode.from_tensor(x) for x in tensors)
        fake = impl.func(q, k, v, 0.5, norm_eps=1e-5, return_lse=True)
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_export(impl: Impl) -> None:
    p = make_problem(Case(sq=9, sk=12, dtype=impl.dtypes[0]), impl.device)

    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = impl.func(q, k, v, 0.5, causal=True)
            return out

    args = (flat(p.q), flat(p.k), p.v)
    program = torch.export.export(Attention(), args)
    assert torch.equal(program.module()(*args), impl.func(*args, 0.5, causal=True))


def test_checkpointing_recomputes_the_same_gradient(impl: Impl) -> None:
    from torch.utils.checkpoint import checkpoint

    p = make_problem(Case(sq=33, sk=40, dtype=impl.dtypes[0], norm="affine"), impl.device)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(impl.func, *args, use_reentrant=False, **kwargs)

    eager = run_backward(impl.func, p)
    for name, gradient in run_backward(checkpointed, p).items():
        assert torch.equal(gradient, eager[name]), name


def test_inference_mode(impl: Impl) -> None:
    p = make_problem(Case(sq=33, sk=40, dtype=impl.dtypes[0]), impl.device)
    with torch.inference_mode():
        check_forward(impl, p)
