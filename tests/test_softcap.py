"""The soft cap on scores, c·tanh(s·QKᵀ / c) before the mask: in every function, under the law."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.cache import KINDS, make_cache
from support.case import DTYPES, Case, short
from support.checks import (
    check_answer,
    check_backward,
    check_forward,
    exact_forward,
    gradient_verdicts,
    run_backward,
)
from support.data import Problem, flat, make_problem
from support.impls import Impl
from support.law import enforce
from test_components import check_components
from test_groups import check_gradients, make_pairs, spread
from torch import Tensor

from diffattn_cuda import diff_flash_attn_backward, merge_components, reference
from diffattn_cuda.nn import MultiheadDiffAttn, MultiheadDiffAttnV2

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
# Caps below, about and above the scores: of standard deviation 1, or 4 in the sharp regime.
CASES = [
    Case(sq=33, sk=70, heads=4, heads_k=2, softcap=2.0, lam="token", norm="affine", lse=True),
    Case(sq=65, sk=65, d=64, dv=128, causal=True, softcap=0.5, lam="head", out_scale=0.2),
    Case(sq=70, sk=40, d=64, dv=64, shared_k=True, causal=True, softcap=30.0, norm="plain"),
    Case(sq=20, sk=150, d=96, dv=192, window=(16, 3), softcap=1.0, regime="sharp", lse=True),
    Case(sq=130, sk=130, d=128, dv=256, causal=True, softcap=50.0, regime="sharp", batch=1),
    Case(sq=40, sk=120, d=128, dv=128, shared_k=True, softcap=3.0, scale=-0.2, lam="negative"),
    Case(sq=130, sk=130, heads=4, heads_k=2, causal=True, window=(15, 0), sink=5,
         streaming=(True, False), softcap=1.5),
    Case(sq=33, sk=40, d=8, dv=16, softcap=150.0, lam="scalar", regime="init"),
]  # fmt: skip
EVERY_CASE = pytest.mark.parametrize("base", CASES, ids=str)  # its dtype is another parameter


@EVERY_CASE
@DTYPE
def test_forward(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    check_forward(impl, make_problem(base.but(dtype=dtype), impl.device))


@EVERY_CASE
@DTYPE
def test_backward(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    check_backward(impl, make_problem(base.but(dtype=dtype), impl.device))


def test_the_reference_is_the_formula() -> None:
    """Of its own: each score by itself, in Python's numbers."""
    p = make_problem(Case(batch=1, sq=3, sk=4, heads=1, d=8, dv=8, dtype=torch.float64, softcap=0.7,
                          causal=True, lam="float"))  # fmt: skip
    out = reference.diff_flash_attn_func(p.q, p.k, p.v, 0.8, causal=True, softcap=0.7)
    for i in range(3):
        row = torch.zeros(8, dtype=torch.float64)
        for c, sign in ((0, 1.0), (1, -0.8)):
            keys = range(i + 2)
            scores = [float(p.q[0, i, 0, c] @ p.k[0, j, 0, c]) / math.sqrt(8) for j in keys]
            weights = [math.exp(0.7 * math.tanh(s / 0.7)) for s in scores]
            for j in keys:
                row += sign * weights[j] / sum(weights) * p.v[0, j, 0]
        torch.testing.assert_close(out[0, i, 0], row)


def test_gradients_are_differences(impl: Impl) -> None:
    """In fp64, where the implementation has it, else of the formula; λ, norm and LSE as well."""
    own = impl.func if torch.float64 in impl.dtypes else reference.diff_flash_attn_func
    case = Case(batch=1, sq=5, sk=6, heads=2, heads_k=1, d=8, dv=16, dtype=torch.float64,
                causal=True, lam="head", norm="affine")  # fmt: skip
    p = make_problem(case)
    inputs = [x.requires_grad_() for x in (p.q, p.k, p.v, p.lam, p.norm_weight)]  # type: ignore[union-attr]

    def call(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, weight: Tensor) -> Any:
        return own(q, k, v, lam, causal=True, norm_weight=weight, norm_eps=1e-5, softcap=0.8,
                   return_lse=True)  # fmt: skip

    assert torch.autograd.gradcheck(call, inputs)


@DTYPE
def test_no_cap_and_a_cap_far_above_the_scores(impl: Impl, dtype: torch.dtype) -> None:
    p = make_problem(Case(sq=70, sk=90, d=64, dv=128, dtype=dtype, causal=True), impl.device)
    plain = run_backward(impl.func, p)
    for name, gradient in run_backward(impl.func, p.but(softcap=0.0)).items():
        assert torch.equal(gradient, plain[name])
    far = p.but(softcap=1e9)
    check_forward(impl, far)
    for verdict in gradient_verdicts(run_backward(impl.func, far), p):
        enforce(verdict)


@DTYPE
@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"window": (20, 3)}], ids=str)
def test_huge_scores_weigh_alike_and_have_no_gradient(
    impl: Impl, dtype: torch.dtype, mask: dict[str, Any]
) -> None:
    """tanh of each is ±1, so a row weighs its keys by e^±c; dQ and dK are zeros."""
    p = make_problem(
        Case(sq=70, sk=90, d=64, dv=128, dtype=dtype, softcap=3.0, **mask), impl.device
    )
    size = 20000.0 if dtype == torch.float16 else 1e15
    signs = torch.where(torch.arange(90, device=impl.device) % 3 == 0, -1.0, 1.0)
    k = signs.view(1, -1, 1, 1, 1).expand(p.k.shape) * size
    p = p.but(q=torch.full_like(p.q, size), k=k.to(dtype))
    out, lse = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
    exact, exact_lse = exact_forward(p)
    unit = 8 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    torch.testing.assert_close(lse.double(), exact_lse, rtol=unit, atol=unit)
    assert bool(((out - exact).norm(dim=-1) <= torch.finfo(dtype).eps * p.v[0].norm()).all())
    gradients = run_backward(impl.func, p)
    assert not bool(gradients["q"].any()) and not bool(gradients["k"].any())
    assert bool(gradients["v"].isfinite().all()) and bool(gradients["v"].any())


@pytest.mark.needs("contains_nan_backward")
@DTYPE
def test_a_hidden_nan_has_no_slope(impl: Impl, dtype: torch.dtype) -> None:
    """Rows before a NaN key see nothing of it; neither do their gradients."""
    p = make_problem(Case(sq=70, sk=70, causal=True, dtype=dtype, softcap=2.0), impl.device)
    k = p.k.clone()
    k[:, 50:] = torch.nan
    dout = p.dout.clone()
    dout[:, 50:] = 0
    spoilt = run_backward(impl.func, p.but(k=k, dout=dout))["q"][:, :50]
    clean = p.but(q=p.q[:, :50], k=p.k[:, :50], v=p.v[:, :50], dout=dout[:, :50])
    for verdict in gradient_verdicts({"q": spoilt}, clean):
        enforce(verdict)


@DTYPE
@pytest.mark.parametrize("sq", [1, 7, 40])
@pytest.mark.parametrize("kind", [KINDS[0], *KINDS[2:4]])
def test_decoding(impl: Impl, kind: str, sq: int, dtype: torch.dtype) -> None:
    case = Case(sq=sq, heads=4, heads_k=2, d=64, dv=128, dtype=dtype, causal=True, softcap=1.5)
    cache = make_cache(case, impl, kind, [10, 100, 131], [0, 17, 3])
    p = cache.problem
    for splits in (0, 3):
        out, lse = impl.kvcache(flat(p.q), cache.k, cache.v, p.lam, **cache.arguments,
                                **p.options(), num_splits=splits, return_lse=True)  # fmt: skip
        for i in range(3):
            check_answer(out[i : i + 1], lse[:, i : i + 1], cache.visible(i, 0))


@DTYPE
def test_decoding_from_a_ring(impl: Impl, dtype: torch.dtype) -> None:
    """Next to full heads, with a token appended: as the reference, which spreads the ring."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(impl.device, dtype)

    q, k, v = draw(2, 1, 4, 32), draw(2, 1, 4, 32), draw(2, 1, 2, 64)
    full, ring = (
        (draw(2, 200, 1, 2, 32), draw(2, 200, 1, 64)),
        (draw(2, 48, 1, 2, 32), draw(2, 48, 1, 64)),
    )
    options: dict[str, Any] = {
        "causal": True, "window_size": (20, 0), "sink_size": 4, "streaming_heads": [False, True],
        "cache_seqlens": torch.tensor([150, 90], dtype=torch.int32, device=impl.device),
        "softcap": 0.8, "return_lse": True,
    }  # fmt: skip
    exact, exact_lse = reference.diff_flash_attn_with_kvcache(
        *(x.double() for x in (q, *full)), 0.8, k.double(), v.double(), **options,
        k_stream=ring[0].double(), v_stream=ring[1].double(),
    )  # fmt: skip
    out, lse = impl.kvcache(q, *full, 0.8, k, v, **options, k_stream=ring[0], v_stream=ring[1])
    assert bool(((out - exact).norm(dim=-1) <= 2 * torch.finfo(dtype).eps * v[0].norm()).all())
    torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-5)


@DTYPE
def test_packed_sequences(impl: Impl, dtype: torch.dtype) -> None:
    lengths = [0, 3, 70, 1, 65]
    case = Case(batch=1, sq=sum(lengths), sk=sum(lengths), heads=4, heads_k=2, causal=True,
                softcap=1.5, dtype=dtype)  # fmt: skip
    p = make_problem(case, impl.device)
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu = torch.tensor(ends, dtype=torch.int32, device=impl.device)

    def call(q: Tensor, k: Tensor, v: Tensor, lam: Any, **options: Any) -> Any:
        return impl.varlen(q[0], k[0], v[0], lam, cu, cu, 70, 70, **options)

    out, lse = call(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
    got = run_backward(lambda *a, **k: call(*a, **k)[None], p)
    for begin, end in zip(ends, ends[1:], strict=False):
        rows = slice(begin, end)
        part = p.but(q=p.q[:, rows], k=p.k[:, rows], v=p.v[:, rows], dout=p.dout[:, rows])
        if begin < end:
            check_answer(out[None, rows], lse[:, None, :, rows], part)
            for verdict in gradient_verdicts({x: got[x][:, rows] for x in "qkv"}, part):
                enforce(verdict)


@DTYPE
def test_groups(impl: Impl, dtype: torch.dtype) -> None:
    r, case = 3, Case(sq=65, sk=70, heads=2, heads_k=1, causal=True, softcap=0.9, dtype=dtype)
    q, p = make_pairs(r, case, impl.device)
    out, lse = impl.func(q, p.k, p.v, p.lam, **p.options(), return_lse=True)
    check_answer(out, spread(lse, case.heads, r), p)
    leaves = [t.detach().clone().requires_grad_() for t in (q, p.k, p.v)]
    grads = torch.autograd.grad(impl.func(*leaves, p.lam, **p.options()), leaves, p.dout)
    check_gradients(dict(zip("qkv", grads, strict=True)), q, p, r)


@DTYPE
def test_components_of_parts(impl: Impl, dtype: torch.dtype) -> None:
    """Merged they are the whole's, and so are gradients that each part gives for the merged."""
    p = make_problem(Case(sq=40, sk=70, dtype=dtype, softcap=1.2, heads_k=2), impl.device)
    parts = [p.but(k=p.k[:, keys], v=p.v[:, keys]) for keys in (slice(0, 31), slice(31, 70))]
    results = [impl.func(x.q, x.k, x.v, None, softcap=1.2, return_components=True) for x in parts]
    o, lse = merge_components(*zip(*results, strict=True))
    check_components(o, lse, p)
    gradients = [
        diff_flash_attn_backward(p.dout, x.q, x.k, x.v, p.lam, o, lse, softcap=1.2,
                                 grad_dtype=o.dtype)[:3]
        for x in parts
    ]  # fmt: skip
    dq = sum(part[0] for part in gradients).to(dtype)
    dk, dv = (torch.cat([part[i] for part in gradients], 1).to(dtype) for i in (1, 2))
    for verdict in gradient_verdicts({"q": dq, "k": dk, "v": dv}, p):
        enforce(verdict)


def test_gradients_of_components(impl: Impl) -> None:
    dtype = impl.dtypes[-1]
    p = make_problem(Case(sq=20, sk=30, dtype=dtype, softcap=0.8), impl.device)
    o, lse = (torch.randn(2, 20, 2, 2, 64), torch.randn(2, 2, 2, 20))

    def gradients(function: Any, p: Problem) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (p.q, p.k, p.v)]
        got = function(*leaves, None, softcap=0.8, return_components=True)
        seeds = [seed.to(x) for seed, x in zip((o, lse), got, strict=True)]
        return torch.autograd.grad(got, leaves, seeds)

    for got, exact in zip(
        gradients(impl.func, p), gradients(reference.diff_flash_attn_func, p.exact()), strict=True
    ):
        tolerance = 4 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
        assert (got - exact).norm() <= tolerance * exact.norm()


@pytest.mark.needs("traces")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_ops_and_their_fake_kernels(impl: Impl, training: bool) -> None:
    p = make_problem(Case(sq=9, sk=9, dtype=impl.dtypes[0]), impl.device)
    lam = p.lam_rows(torch.float32).contiguous()
    tensors = [x.detach().clone().requires_grad_(training) for x in (p.q, p.k, p.v, lam)]
    scale, mask = p.softmax_scale(), p.mask()
    options = (None, None, None, 0, 0, scale, *mask, None, 1.0, False, training, 1.5)
    torch.library.opcheck(torch.ops.diffattn.fwd, (*tensors, *options))
    apart = (None, None, 0, 0, scale, *mask, False, 1.5)
    torch.library.opcheck(torch.ops.diffattn.components, (*tensors[:3], *apart))


@pytest.mark.needs("traces")
def test_under_compile(impl: Impl) -> None:
    """A cap is a constant of the graph; each cap has its own result."""
    torch._dynamo.reset()
    p = make_problem(Case(sq=40, sk=40, dtype=impl.dtypes[-2], causal=True), impl.device)
    compiled = torch.compile(impl.func, fullgraph=True)
    for cap in (0.5, 2.0, 0.0):
        x = p.but(softcap=cap)
        got, eager = run_backward(compiled, x), run_backward(impl.func, x)
        for name, gradient in got.items():
            assert torch.equal(gradient, eager[name])


@pytest.mark.needs("traces")
def test_under_autocast(impl: Impl) -> None:
    p = make_problem(Case(sq=40, sk=40, dtype=torch.float32, softcap=0.8), impl.device)
    half = [x.bfloat16() for x in (p.q, p.k, p.v)]
    with torch.autocast(impl.device.type, torch.bfloat16):
        out = impl.func(p.q, p.k, p.v, 0.8, softcap=0.8)
    assert torch.equal(out, impl.func(*half, 0.8, softcap=0.8))


@pytest.mark.parametrize("version", [MultiheadDiffAttn, MultiheadDiffAttnV2])
def test_modules(impl: Impl, version: Any) -> None:
    """The layer's cap reaches training, prompts and steps; the eager layer says what is right."""
    torch.manual_seed(1)
    factory = {"device": impl.device, "dtype": impl.dtypes[-2], "num_heads": 2, "softcap": 0.1}
    depth = {"depth": 3} if version is MultiheadDiffAttn else {}
    layer, eager = (version(64, **depth, **factory, implementation=i) for i in ("fused", "eager"))
    eager.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for projection in (layer.q_proj, eager.q_proj):
            projection.weight *= 30  # so that the cap is felt
        x = torch.randn(2, 30, 64).to(impl.device, layer.q_proj.weight.dtype)
        whole = eager(x)
        cache = layer.make_cache(2, 40)
        steps = torch.cat([layer(x[:, :20], None, cache), layer(x[:, 20:], None, cache)], 1)
        tolerance = 5e-2 if x.dtype.itemsize == 2 else 1e-4
        for got in (layer(x), steps):
            assert (got - whole).norm() <= tolerance * whole.norm()
        layer.softcap = 0.0
        assert (layer(x) - whole).norm() > 10 * tolerance * whole.norm()
    assert "softcap=0.1" in repr(eager)
