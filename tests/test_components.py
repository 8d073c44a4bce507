"""Each map's own result: the law, merging over parts of the keys, combining, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import check_lse, forward_verdict, gradient_verdicts, run_backward
from support.data import Problem, flat, make_problem, wide
from support.emulation import Emulation
from support.impls import HALF, Impl
from support.law import FORWARD, GRADIENT, VARIANTS, emulated_squares, enforce, judge
from support.refusal import refuses
from support.threads import threads
from torch import Tensor

from diffattn_cuda import (
    arguments,
    combine_components,
    diff_flash_attn_backward,
    merge_components,
    ops,
    reference,
)

CASES = [
    Case(sq=33, sk=70, heads=4, heads_k=2, lam="token", norm="affine"),
    Case(sq=65, sk=65, d=64, dv=128, causal=True, lam="head", out_scale=0.2),
    Case(sq=70, sk=40, d=64, dv=64, shared_k=True, causal=True, norm="plain", lam="scalar"),
    Case(sq=20, sk=150, d=96, dv=192, window=(16, 3), regime="sharp", shared_k=True),
    Case(sq=130, sk=130, d=128, dv=256, causal=True, regime="init", batch=1),
    Case(sq=17, sk=33, d=40, dv=40, heads=3, heads_k=3, scale=-0.2, lam="negative"),
    Case(sq=33, sk=40, d=8, dv=16, lam="scalar", causal=True),
    Case(sq=33, sk=40, d=72, dv=144, heads_k=2, lam="zero", norm="plain"),
    Case(sq=33, sk=40, d=16, dv=16, lam="narrow", norm="affine"),
]
EVERY_CASE = pytest.mark.parametrize("base", CASES, ids=str)  # its dtype is another parameter
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)


def options(p: Problem) -> dict[str, Any]:
    mask = {"causal": p.causal, "window_size": p.window, "sink_size": p.sink}
    return {"softmax_scale": p.scale, "softcap": p.softcap, **mask}


def epilogue(p: Problem) -> dict[str, Any]:
    return {"norm_weight": p.norm_weight, "norm_eps": p.norm_eps, "out_scale": p.out_scale}


def components(impl: Impl, p: Problem, **changes: Any) -> tuple[Tensor, Tensor]:
    arguments = options(p) | {"return_components": True} | changes
    return impl.func(flat(p.q), flat(p.k), p.v, None, **arguments)


@threads(1)
def check_components(o: Tensor, lse: Tensor, p: Problem) -> None:
    """Rows of each map's result under the law, and its LSE.

    Nothing is rounded behind the roundings of P, and in a sharp row one or two of these decide: the
    tail is long, so errors are pooled by the maximum in 16 bits too.
    """
    assert o.dtype == lse.dtype == wide(p.q.dtype) and o.device == p.q.device
    x = p.exact()
    exact, exact_lse = reference.diff_flash_attn_func(
        x.q, x.k, x.v, None, **options(x), return_components=True
    )
    emulated = [Emulation(p, i).forward().o.permute(1, 3, 2, 0, 4) for i in range(VARIANTS)]
    squares = emulated_squares(exact, emulated, (0, 2, 3), pool_max=True)
    enforce(judge("o", o, exact, squares, exact.cpu().norm(dim=-1), FORWARD))
    check_lse(lse.movedim(-2, 0), exact_lse.movedim(-2, 0), p)


@EVERY_CASE
@EVERY_DTYPE
def test_each_map(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    p = make_problem(base.but(dtype=dtype), impl.device)
    check_components(*components(impl, p), p)


@EVERY_CASE
@EVERY_DTYPE
def test_combined_they_are_the_output(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    p = make_problem(base.but(dtype=dtype), impl.device)
    o, _ = components(impl, p)
    out = combine_components(o, p.lam, **epilogue(p), out_dtype=dtype)
    assert out.dtype == dtype
    enforce(forward_verdict(out, p))


def parts(p: Problem, cuts: list[int]) -> list[tuple[Problem, tuple[int, int]]]:
    """The problem on parts of the keys, each with the window that shows it what the whole does."""
    (left, right), seqlen_k = p.window, p.k.shape[1]
    right = 0 if p.causal else right
    found = []
    for first, last in zip([0, *cuts], [*cuts, seqlen_k], strict=True):
        behind = seqlen_k - last  # bottom-right alignment moves with the last key
        window = (left if left < 0 else left - behind, right if right < 0 else right + behind)
        keys = slice(first, last)
        found.append((p.but(k=p.k[:, keys], v=p.v[:, keys], causal=False), window))
    return found


@pytest.mark.parametrize(
    "base",
    [
        Case(sq=33, sk=70, heads=4, heads_k=2),
        Case(sq=60, sk=70, d=64, dv=128, causal=True),  # most rows see nothing of the last part
        Case(sq=90, sk=40, d=64, dv=64, shared_k=True, causal=True),  # some rows see no key
        Case(sq=40, sk=70, regime="sharp", d=128, dv=256),
    ],
    ids=str,
)
@EVERY_DTYPE
def test_parts_of_the_keys_merge_to_the_whole(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    p = make_problem(base.but(dtype=dtype), impl.device)
    seqlen_k = p.k.shape[1]
    cuts = [seqlen_k // 3, seqlen_k // 3, seqlen_k - 9]  # the second part has no keys
    results = [components(impl, part, causal=False, window_size=window)
               for part, window in parts(p, cuts)]  # fmt: skip
    o, lse = merge_components(*zip(*results, strict=True))
    check_components(o, lse, p)
    empty = lse == -torch.inf
    assert bool((o[empty.movedim(-1, -3)] == 0).all())


def test_the_output_with_its_lse_does_not_merge() -> None:
    """What return_lse gives cannot replace components: why they exist."""
    p = make_problem(Case(sq=24, sk=24, dtype=torch.float64))
    whole = reference.diff_flash_attn_func(p.q, p.k, p.v, 0.8)
    results = [reference.diff_flash_attn_func(x.q, x.k, x.v, 0.8, return_lse=True)
               for x, _ in parts(p, [8, 16])]  # fmt: skip
    outs, lses = (torch.stack(x) for x in zip(*results, strict=True))
    weights = lses.softmax(0)[:, 0].transpose(-1, -2)[..., None]  # by the signal's
    assert float((whole - (weights * outs).sum(0)).abs().max()) > 0.01


@EVERY_DTYPE
def test_packed_sequences(impl: Impl, dtype: torch.dtype) -> None:
    p = make_problem(Case(batch=1, sq=40, sk=40, d=64, dv=128, dtype=dtype, causal=True))
    starts = [0, 7, 7, 40]
    cu = torch.tensor(starts, dtype=torch.int32)
    o, lse = impl.varlen(
        flat(p.q)[0], flat(p.k)[0], p.v[0], None, cu, cu, 33, 33, causal=True,
        return_components=True,
    )  # fmt: skip
    assert o.shape == (40, 2, 2, 128) and lse.shape == (2, 2, 40)
    for first, last in zip(starts, starts[1:], strict=False):
        rows = slice(first, last)
        one = p.but(q=p.q[:, rows], k=p.k[:, rows], v=p.v[:, rows])
        if first < last:
            check_components(o[None, rows], lse[None, ..., rows], one)


def differentiated(impl: Impl, p: Problem, do: Tensor, dlse: Tensor) -> dict[str, Tensor]:
    q, k, v = (x.detach().clone().requires_grad_() for x in (p.q, p.k, p.v))
    o, lse = impl.func(q, k, v, None, **options(p), return_components=True)
    seen = lse.isfinite()
    (o * do).sum().add((lse[seen] * dlse[seen]).sum()).backward()
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return {"q": q.grad, "k": k.grad, "v": v.grad}


@EVERY_CASE
@EVERY_DTYPE
def test_each_maps_own_gradient(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    """do of the two maps and dlse are independent of each other."""
    p = make_problem(base.but(dtype=dtype), impl.device)
    generator = torch.Generator().manual_seed(5)
    b, sq, h, _, _ = p.q.shape
    draw = [(b, sq, h, 2, p.v.shape[-1]), (b, h, 2, sq)]
    do, dlse = (torch.randn(shape, generator=generator).to(wide(dtype)) for shape in draw)
    got = differentiated(impl, p, do.to(impl.device), dlse.to(impl.device))
    with threads(1):
        exact_impl = type("Exact", (), {"func": staticmethod(reference.diff_flash_attn_func)})
        exact = differentiated(exact_impl, p.exact(), do.double(), dlse.double())  # type: ignore[arg-type]
        do, dlse = do.permute(3, 0, 2, 1, 4), dlse.movedim(-2, 0)
        runs = [Emulation(p, i).backward_of_maps(do, dlse) for i in range(VARIANTS)]
        for name, shared in (("q", (0, 2, 3)), ("k", (0, 2, 3)), ("v", (0, 2))):
            squares = emulated_squares(exact[name], [run[name] for run in runs], shared,
                                       dtype not in HALF)  # fmt: skip
            size = exact[name].norm(dim=-1)
            enforce(judge(f"d{name}", got[name], exact[name], squares, size, GRADIENT))


@EVERY_DTYPE
def test_a_map_that_adds_nothing_is_left_out(dtype: torch.dtype) -> None:
    """On the CPU, which saves its flop: a NaN in it reaches nothing. The rows are two blocks."""
    p = make_problem(Case(sq=100, sk=70, heads=4, heads_k=2, dtype=dtype, lam="zero"))
    q = torch.stack((p.q[..., 0, :], torch.full_like(p.q[..., 0, :], torch.nan)), -2)
    o, lse = reference.diff_flash_attn_func(p.q, p.k, p.v, None, return_components=True)
    lam = torch.zeros(p.q.shape[:3], dtype=wide(dtype))

    def gradients(q: Tensor, lam: Tensor) -> tuple[Tensor, ...]:
        dlse = torch.zeros_like(lse).movedim(-2, 0).contiguous()
        options = 0, 0, p.softmax_scale(), -1, -1, 0, arguments.ALL_STREAM, False
        return ops.kernels.bwd_partial(p.dout, dlse, q, p.k, p.v, lam, lse.movedim(-2, 0), None,
                                       None, *options)  # fmt: skip

    dq, dk, dv = gradients(q, lam)
    assert bool((dq[..., 1, :] == 0).all()) and bool((dk[..., 1, :] == 0).all())
    of_both = gradients(p.q, lam + 1e-30)
    assert torch.equal(dq[..., 0, :], of_both[0][..., 0, :])
    assert torch.equal(dk[..., 0, :], of_both[1][..., 0, :])
    assert torch.equal(dv, of_both[2])
    assert bool(gradients(q, lam + 1)[0].isnan().any())


@pytest.mark.parametrize("norm", ["none", "plain", "affine"])
@pytest.mark.parametrize("lam", ["scalar", "head", "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=short)
def test_gradients_through_the_combination(
    impl: Impl, dtype: torch.dtype, norm: str, lam: str
) -> None:
    """The gradients of the fused call, λ's and the norm weight's included.

    Not in 16 bits, where each map's P is rounded here, and the difference of the maps there.
    """
    case = Case(sq=33, sk=40, heads=4, heads_k=2, lam=lam, norm=norm, out_scale=0.2, dtype=dtype)
    p = make_problem(case, impl.device)

    def combined(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, **given: Any) -> Tensor:
        last = {name: given.pop(name) for name in ("norm_weight", "norm_eps", "out_scale")}
        o, _ = impl.func(q, k, v, None, **given, return_components=True)
        return combine_components(o, lam, **last)

    for verdict in gradient_verdicts(run_backward(combined, p), p):
        enforce(verdict)


@EVERY_CASE
@EVERY_DTYPE
@pytest.mark.parametrize("cuts", [[], [10, 3]], ids=["whole", "parts"])
def test_a_backward_of_parts(impl: Impl, base: Case, dtype: torch.dtype, cuts: list[int]) -> None:
    """The fused call's gradients: dq adds up, dk and dv are parts, dλ and dw whole in each."""
    p = make_problem(base.but(dtype=dtype, lse=True), impl.device)
    o, lse = components(impl, p)
    lam = p.lam if isinstance(p.lam, Tensor) else torch.tensor(p.lam, dtype=wide(dtype))
    assert p.dlse is not None
    gradients = [
        diff_flash_attn_backward(
            p.dout, p.q, part.k, part.v, lam, o, lse, p.dlse.movedim(0, -2), wide(dtype),
            softmax_scale=p.scale, causal=False, window_size=window, **epilogue(p),
        )
        for part, window in parts(p, [p.k.shape[1] - n for n in cuts])
    ]  # fmt: skip
    dq, dk, dv, dlam, dweight = zip(*gradients, strict=True)
    got = {"q": sum(dq), "k": torch.cat(dk, 1), "v": torch.cat(dv, 1)}
    got = {name: x.to(dtype) for name, x in got.items()} | {"lam": dlam[0]}
    if p.norm_weight is not None:
        got["norm_weight"] = dweight[0]
    for verdict in gradient_verdicts(got, p.but(lam=lam)):
        enforce(verdict)
    assert all(torch.equal(x, dlam[0]) for x in dlam)


def test_a_backward_of_packed_sequences(impl: Impl, d: int = 32) -> None:
    """As the dense one of each sequence, to the bit; flat heads; without dlse, weight, tensor λ."""
    case = Case(batch=1, sq=40, sk=40, d=d, dv=2 * d, dtype=impl.dtypes[0], causal=True)
    p = make_problem(case, impl.device)
    cu = torch.tensor([0, 7, 40], dtype=torch.int32, device=impl.device)
    q, k, v, dout = flat(p.q)[0], flat(p.k)[0], p.v[0], p.dout[0]
    packing: dict[str, Any] = {"cu_seqlens_q": cu, "cu_seqlens_k": cu}
    packing |= {"max_seqlen_q": 33, "max_seqlen_k": 33}
    o, lse = impl.varlen(q, k, v, None, **packing, causal=True, return_components=True)
    got = diff_flash_attn_backward(
        dout, q, k, v, 0.8, o, lse, **packing, causal=True, deterministic=True
    )
    assert [x.shape for x in got[:3]] == [q.shape, k.shape, v.shape] and got[3:] == (None, None)
    assert all(x.dtype == q.dtype for x in got[:3])
    for rows in (slice(0, 7), slice(7, 40)):
        dense = (dout[None, rows], q[None, rows], k[None, rows], v[None, rows])
        statistics = (o[None, rows], lse[None, ..., rows])
        one = diff_flash_attn_backward(*dense, 0.8, *statistics, causal=True, deterministic=True)
        for x, y in zip(got[:3], one[:3], strict=True):
            assert torch.equal(x[rows], y[0])


def test_a_backward_under_inference_mode(impl: Impl) -> None:
    """Also of inference tensors, which autograd does not record: λ and the norm need its help."""
    case = Case(sq=20, sk=20, dtype=impl.dtypes[0], lam="head", norm="affine")
    p = make_problem(case, impl.device)

    def gradients() -> tuple[Tensor | None, ...]:
        assert isinstance(p.lam, Tensor)
        dout, q, k, v, lam = (x.clone() for x in (p.dout, p.q, p.k, p.v, p.lam))
        o, lse = impl.func(q, k, v, None, return_components=True)
        return diff_flash_attn_backward(
            dout, q, k, v, lam, o, lse, **epilogue(p), deterministic=True
        )

    with torch.inference_mode():
        inside = gradients()
    for x, y in zip(inside, gradients(), strict=True):
        assert x is not None and y is not None and torch.equal(x, y)


def test_merge_and_combine_are_differentiable() -> None:
    """In fp64, with a row that saw nothing of one part, and one that saw nothing at all."""
    torch.manual_seed(0)
    o = [torch.randn(2, 3, 2, 2, 4, dtype=torch.float64) for _ in range(3)]
    lse = [torch.randn(2, 2, 2, 3, dtype=torch.float64) for _ in range(3)]
    hidden = torch.zeros(3, 2, 2, 2, 3, dtype=torch.bool)
    hidden[1, 0, 0, 1, 2] = hidden[:, 1, 1, 0, 0] = True
    for i in range(3):
        o[i] = o[i].masked_fill(hidden[i].movedim(-1, -3)[..., None], 0)
    lam, weight = torch.rand(2, 3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (*o, *lse, lam, weight)]

    def whole(*x: Tensor) -> tuple[Tensor, Tensor]:
        shown = [logs.masked_fill(hidden[i], -torch.inf) for i, logs in enumerate(x[3:6])]
        merged, total = merge_components(x[:3], shown)
        out = combine_components(merged, x[6], x[7], norm_eps=0.1, out_scale=0.3)
        return out, total.masked_fill(total == -torch.inf, 0)

    assert torch.autograd.gradcheck(whole, leaves)
    assert all(bool(x.grad is None or x.grad.isfinite().all()) for x in leaves)


def test_lambdas_and_weights_gradients_are_in_fp32() -> None:
    """dλ and dw sum rows in fp32, whatever the output's dtype."""
    torch.manual_seed(0)
    o = torch.randn(1, 4096, 2, 2, 16)
    lam, weight = torch.tensor(0.8, requires_grad=True), torch.ones(16, requires_grad=True)
    out = combine_components(o, lam, weight, 1e-5, out_dtype=torch.bfloat16)
    out.backward(torch.ones_like(out))
    exact = tuple(x.detach().double().requires_grad_() for x in (lam, weight))
    combine_components(o.double(), exact[0], exact[1], 1e-5).sum().backward()
    for got, wanted in zip((lam, weight), exact, strict=True):
        assert got.grad is not None and wanted.grad is not None and got.grad.dtype == torch.float32
        torch.testing.assert_close(got.grad.double(), wanted.grad, rtol=1e-4, atol=1e-2)


def test_wrong_arguments_are_refused(impl: Impl) -> None:
    p = make_problem(Case(sq=5, sk=5, dtype=impl.dtypes[0]), impl.device)
    with refuses("return_lse and return_components"):
        components(impl, p, return_lse=True)
    for name, value in (("norm_eps", 1e-5), ("out_scale", 0.2), ("norm_weight", p.v[0, 0, 0])):
        with refuses(f"{name} was given with return_components"):
            components(impl, p, **{name: value})
    with refuses("lam is None"):
        impl.func(p.q, p.k, p.v, None)
    o, lse = torch.zeros(1, 5, 2, 2, 8), torch.zeros(1, 2, 2, 5)
    with refuses("o has 0 parts"):
        merge_components([], [])
    with refuses("o has 2 parts, lse has 1"):
        merge_components([o, o], [lse])
    with refuses("lse[1] has shape (2, 1, 2, 5), expected (1, 2, 2, 5)"):
        merge_components([o, o], [lse, lse.movedim(1, 0)])
    with refuses("o[1] has shape"):
        merge_components([o, o[:, :4]], [lse, lse[..., :4]])
    with refuses("lse[0] has dtype torch.float64"):
        merge_components([o], [lse.double()])
    with refuses("o[0] has dtype torch.bfloat16"):
        merge_components([o.bfloat16()], [lse])
    with refuses("o has shape"):
        combine_components(o[..., :1, :], 0.8)
    with refuses("lam has shape"):
        combine_components(o, torch.rand(3))
    with refuses("norm_weight has shape"):
        combine_components(o, 0.8, torch.ones(7), 1e-5)
    result = p.dout, p.q, p.k, p.v
    o_of_p, lse_of_p = components(impl, p)
    with refuses("lse is NoneType"):
        diff_flash_attn_backward(*result, 0.8, o_of_p, None)  # type: ignore[arg-type]
    with refuses("lam has dtype torch.int64"):
        diff_flash_attn_backward(*result, torch.tensor(1, device=impl.device), o_of_p, lse_of_p)
    with refuses("norm_weight has dtype torch.int64"):
        weight = torch.ones(p.v.shape[-1], dtype=torch.int64, device=impl.device)
        diff_flash_attn_backward(*result, 0.8, o_of_p, lse_of_p, norm_weight=weight, norm_eps=1e-5)
    with refuses("out_dtype is"):
        combine_components(o, 0.8, out_dtype=torch.int32)
