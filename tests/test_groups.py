"""Groups of maps: r signal maps to one noise map, in every function, against the formula.

An output head is one pair of its group, its signal and the noise. So the pairs' problem, which
repeats the noise, is what the law is asked of; its noise gradients add up over a group.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import check_lse, forward_verdict
from support.data import Problem, flat, make_problem, wide
from support.emulation import Emulation
from support.impls import Impl
from support.law import GRADIENT, VARIANTS, emulated_squares, enforce, judge
from support.refusal import refuses
from support.threads import threads
from torch import Tensor

from diffattn_cuda import (
    combine_components,
    diff_flash_attn_backward,
    merge_components,
    reference,
)
from diffattn_cuda.ring import Ring

# heads is groups; the pairs' problem has r times as many.
CASES = [
    (4, Case(sq=33, sk=70, heads=2, heads_k=1, lam="token", norm="affine")),
    (4, Case(sq=65, sk=65, d=128, dv=256, causal=True, lam="head", out_scale=0.2, batch=1)),
    (3, Case(sq=70, sk=40, d=64, dv=64, shared_k=True, causal=True, norm="plain", lam="scalar")),
    (2, Case(sq=20, sk=150, d=96, dv=192, window=(16, 3), regime="sharp", shared_k=True)),
    (2, Case(sq=130, sk=130, d=32, dv=64, causal=True, regime="init", heads=4, heads_k=2)),
    (8, Case(sq=17, sk=33, d=8, dv=8, heads=3, heads_k=3, scale=-0.2, lam="negative")),
    (5, Case(sq=1, sk=40, d=72, dv=144, heads=1, lam="zero")),
    (3, Case(sq=60, sk=60, heads=4, heads_k=2, causal=True, window=(9, 0), sink=3,
             streaming=(True, False), lam="token")),
    (1, Case(sq=33, sk=70, heads=4, heads_k=2, lam="token", norm="affine")),
]  # fmt: skip
EVERY_CASE = pytest.mark.parametrize(("r", "base"), CASES, ids=str)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)


def make_pairs(r: int, case: Case, device: Any) -> tuple[Tensor, Problem]:
    """q (b, s, groups, r + 1, d), and the problem of its pairs."""
    pairs = make_problem(case.but(heads=case.heads * r), device)
    signals = pairs.q[..., 0, :].unflatten(2, (case.heads, r))
    q = torch.cat((signals, pairs.q.unflatten(2, (case.heads, r))[..., :1, 1, :]), -2)
    noise = q[..., r:, :].expand(signals.shape)
    return q, pairs.but(q=torch.stack((signals, noise), -2).flatten(2, 3))


def spread(lse: Tensor, groups: int, r: int) -> Tensor:
    """(r + 1, b, groups, s) as the pairs have it, (2, b, groups·r, s)."""
    signals = lse[:-1].movedim(0, 2)
    assert signals.shape[1:3] == (groups, r)
    return torch.stack((signals, lse[-1][:, :, None].expand(signals.shape))).flatten(2, 3)


def sum_noise(dq: Tensor, r: int) -> Tensor:
    """Gradients of the pairs' q as those of the group's."""
    signals, noise = dq.unflatten(2, (-1, r)).unbind(-2)
    return torch.cat((signals, noise.sum(3, keepdim=True)), 3)


@EVERY_CASE
@EVERY_DTYPE
def test_forward(impl: Impl, r: int, base: Case, dtype: torch.dtype) -> None:
    q, p = make_pairs(r, base.but(dtype=dtype), impl.device)
    out, lse = impl.func(q, p.k, p.v, p.lam, **p.options(), return_lse=True)
    assert out.shape == (*q.shape[:2], base.heads * r, base.dv) and out.dtype == dtype
    assert lse.shape == (r + 1, q.shape[0], base.heads, q.shape[1])
    enforce(forward_verdict(out, p))
    x = p.exact()
    _, exact = reference.diff_flash_attn_func(x.q, x.k, x.v, x.lam, **x.options(), return_lse=True)
    check_lse(spread(lse, base.heads, r), exact, p)


def test_the_reference_is_r_calls_with_the_noise_repeated() -> None:
    r, case = 4, Case(heads=2, heads_k=1, dtype=torch.float64, causal=True, lam="token")
    q, p = make_pairs(r, case, "cpu")
    lam = p.lam_rows(torch.float64)
    out, lse = reference.diff_flash_attn_func(q, p.k, p.v, lam, **p.options(), return_lse=True)
    for i in range(r):
        one, one_lse = reference.diff_flash_attn_func(
            q[..., [i, r], :], p.k, p.v, lam[..., i::r], **p.options(), return_lse=True
        )
        torch.testing.assert_close(out[:, :, i::r], one)
        torch.testing.assert_close(lse[[i, r]], one_lse)


@EVERY_CASE
@EVERY_DTYPE
def test_backward(impl: Impl, r: int, base: Case, dtype: torch.dtype) -> None:
    q, p = make_pairs(r, base.but(dtype=dtype), impl.device)
    lam = p.lam_rows(wide(dtype)).clone()
    leaves = [t.detach().clone().requires_grad_() for t in (q, p.k, p.v, lam)]
    out = impl.func(*leaves, **p.options())
    got = dict(zip("qkv", torch.autograd.grad(out, leaves, p.dout), strict=False))
    check_gradients(got, q, p.but(lam=lam), r)


@threads(1)
def check_gradients(got: dict[str, Tensor], q: Tensor, p: Problem, r: int) -> None:
    """Under the law: what the pairs' emulation gives, its noise summed and rounded once."""
    x = p.exact()
    leaves = [t.detach().clone().requires_grad_() for t in (q.double(), x.k, x.v)]
    out = reference.diff_flash_attn_func(*leaves, x.lam, **x.options())
    exact = dict(zip("qkv", torch.autograd.grad(out, leaves, x.dout), strict=True))
    runs = [Emulation(p, i).backward() for i in range(VARIANTS)]
    for name, gradient in got.items():
        emulated = [run[name] for run in runs]
        if name == "q":
            emulated = [sum_noise(e, r) for e in emulated]
        pool = (0, *range(2, gradient.dim() - 1))
        squares = emulated_squares(exact[name], emulated, pool, pool_max=True)
        size = exact[name].cpu().norm(dim=-1)
        enforce(judge(f"d{name}", gradient, exact[name], squares, size, GRADIENT))


@EVERY_DTYPE
def test_lambda_of_a_group(impl: Impl, dtype: torch.dtype) -> None:
    r, case = 3, Case(heads=2, heads_k=1, dtype=dtype, lam="token")
    q, p = make_pairs(r, case, impl.device)
    lam = p.lam_rows(wide(dtype))[..., ::r].clone().requires_grad_()
    of_heads = lam.detach().repeat_interleave(r, -1).requires_grad_()
    outs = [impl.func(q, p.k, p.v, x, **p.options()) for x in (lam, of_heads)]
    assert torch.equal(*outs)
    for out in outs:
        out.backward(p.dout)
    assert lam.grad is not None and of_heads.grad is not None
    torch.testing.assert_close(lam.grad, of_heads.grad.unflatten(-1, (-1, r)).sum(-1))


@EVERY_DTYPE
def test_lse_is_differentiable(impl: Impl, dtype: torch.dtype) -> None:
    q, p = make_pairs(3, Case(heads=2, heads_k=1, dtype=dtype, causal=True), impl.device)
    gradients = []
    for attend, cast in ((impl.func, lambda t: t), (reference.diff_flash_attn_func, Tensor.double)):
        leaf = cast(q).detach().requires_grad_()
        _, lse = attend(leaf, cast(p.k), cast(p.v), 0.5, causal=True, return_lse=True)
        weights = torch.arange(lse.numel(), device=lse.device).view(lse.shape) / lse.numel()
        (lse * weights.to(lse.dtype)).sum().backward()
        gradients.append(leaf.grad.double())
    error = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert error < 20 * torch.finfo(dtype).eps


@EVERY_DTYPE
def test_any_strides(impl: Impl, dtype: torch.dtype) -> None:
    """Signals first and then all noise is another view, as is k with its two maps apart."""
    r, case = 2, Case(heads=3, heads_k=3, dtype=dtype)
    q, p = make_pairs(r, case, impl.device)
    stored = q.permute(3, 2, 0, 1, 4).contiguous()
    view = stored.permute(2, 3, 1, 0, 4)
    k = p.k.permute(3, 1, 0, 2, 4).contiguous().permute(2, 1, 3, 0, 4)
    assert torch.equal(impl.func(view, k, p.v, 0.7), impl.func(q, p.k, p.v, 0.7))


@EVERY_DTYPE
@pytest.mark.parametrize("components", [False, True])
def test_packed_sequences(impl: Impl, dtype: torch.dtype, components: bool) -> None:
    r, starts = 4, [0, 7, 7, 40]
    q, p = make_pairs(
        r, Case(batch=1, sq=40, sk=40, heads=2, dtype=dtype, lam="token"), impl.device
    )
    cu = torch.tensor(starts, dtype=torch.int32, device=impl.device)
    options: dict[str, Any] = {"causal": True}
    options["return_components" if components else "return_lse"] = True
    lam = p.lam
    assert isinstance(lam, Tensor)
    out, lse = impl.varlen(q[0], p.k[0], p.v[0], lam[0], cu, cu, 33, 33, **options)
    for first, last in zip(starts, starts[1:], strict=False):
        rows = slice(first, last)
        if first == last:
            continue
        one, one_lse = impl.func(q[:, rows], p.k[:, rows], p.v[:, rows], lam[:, rows], **options)
        assert torch.equal(out[rows], one[0])
        assert torch.equal(lse[..., rows], one_lse[0] if components else one_lse[:, 0])


@EVERY_DTYPE
def test_components_combine_and_merge(impl: Impl, dtype: torch.dtype) -> None:
    r, case = 3, Case(sq=30, sk=70, heads=2, dtype=dtype, lam="head", norm="affine")
    q, p = make_pairs(r, case, impl.device)
    parts = [impl.func(q, p.k[:, keys], p.v[:, keys], None, return_components=True)
             for keys in (slice(0, 41), slice(41, 70))]  # fmt: skip
    o, lse = merge_components(*zip(*parts, strict=True))
    assert o.shape == (2, 30, 2, r + 1, 64) and lse.shape == (2, 2, r + 1, 30)
    out = combine_components(
        o, p.lam, norm_weight=p.norm_weight, norm_eps=p.norm_eps, out_dtype=dtype
    )
    enforce(forward_verdict(out, p))
    exact = reference.diff_flash_attn_func(q.double(), p.k.double(), p.v.double(), None,
                                           return_components=True)  # fmt: skip
    bound = 20 * torch.finfo(dtype).eps
    for got, want in zip((o, lse), exact, strict=True):
        assert (got.double() - want).norm() < bound * want.norm()


@EVERY_DTYPE
def test_gradients_of_components_and_of_parts(impl: Impl, dtype: torch.dtype) -> None:
    r, case = 3, Case(sq=30, sk=70, heads=2, dtype=dtype)
    q, p = make_pairs(r, case, impl.device)
    lam = torch.rand(2 * r, device=impl.device, dtype=wide(dtype))
    dlse = torch.randn(2, 2, r + 1, 30, device=impl.device, dtype=wide(dtype))

    def whole(attend: Any, *tensors: Tensor) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        o, lse = attend(*leaves[:3], None, return_components=True)
        out = combine_components(o, leaves[3], norm_eps=1e-5, out_dtype=tensors[0].dtype)
        pairs = (out, p.dout.to(out.dtype)), (lse, dlse.to(lse.dtype))
        return list(torch.autograd.grad([x for x, _ in pairs], leaves, [g for _, g in pairs]))

    exact = whole(reference.diff_flash_attn_func,
                  *(t.double() for t in (q, p.k, p.v, lam)))  # fmt: skip
    bound = 30 * torch.finfo(dtype).eps
    for got, want in zip(whole(impl.func, q, p.k, p.v, lam), exact, strict=True):
        assert (got.double() - want).norm() < bound * want.norm()

    o, lse = impl.func(q, p.k, p.v, None, return_components=True)
    parts = [
        diff_flash_attn_backward(p.dout, q, p.k[:, keys], p.v[:, keys], lam, o, lse,
                                 dlse / 2, norm_eps=1e-5)
        for keys in (slice(0, 41), slice(41, 70))
    ]  # fmt: skip
    dq = parts[0][0].double() + parts[1][0].double()
    dk, dv = (torch.cat([part[i] for part in parts], 1).double() for i in (1, 2))
    _check_parts_of_lse(dq, dk, dv, parts[0][3], exact, dlse, q, p, bound)


def _check_parts_of_lse(
    dq: Tensor, dk: Tensor, dv: Tensor, dlam: Any, exact: list[Tensor], dlse: Tensor, q: Tensor,
    p: Problem, bound: float,
) -> None:  # fmt: skip
    """Each part was given half of dlse, which both parts' keys enter: so half of its gradient."""
    leaves = [t.detach().double().requires_grad_() for t in (q, p.k)]
    _, lse = reference.diff_flash_attn_func(*leaves, p.v.double(), None, return_components=True)
    halves = torch.autograd.grad(lse, leaves, dlse.double() / 2)
    wants = (exact[0] - halves[0], exact[1] - halves[1], exact[2], exact[3])
    for got, want in zip((dq, dk, dv, dlam), wants, strict=True):
        assert (got.double() - want).norm() < bound * want.norm()


@EVERY_DTYPE
@pytest.mark.parametrize("shared", [False, True])
def test_decoding(impl: Impl, dtype: torch.dtype, shared: bool) -> None:
    r, case = 4, Case(sq=2, sk=70, heads=2, heads_k=2, dtype=dtype, shared_k=shared, norm="plain",
                      lam="token", causal=True)  # fmt: skip
    q, p = make_pairs(r, case, impl.device)
    capacity = 80
    k_cache = q.new_zeros(2, capacity, *p.k.shape[2:])
    v_cache = q.new_zeros(2, capacity, *p.v.shape[2:])
    k_cache[:, :68], v_cache[:, :68] = p.k[:, :68], p.v[:, :68]
    out, lse = impl.kvcache(
        q, k_cache, v_cache, p.lam, p.k[:, 68:], p.v[:, 68:], cache_seqlens=68, causal=True,
        norm_eps=p.norm_eps, return_lse=True,
    )  # fmt: skip
    assert out.shape == (2, 2, 8, 64) and lse.shape == (r + 1, 2, 2, 2)
    enforce(forward_verdict(out, p))
    o, logs = impl.kvcache(
        q, k_cache, v_cache, None, cache_seqlens=70, causal=True, return_components=True
    )
    assert o.shape == (2, 2, 2, r + 1, 64) and torch.equal(logs.movedim(2, 0), lse)
    out = combine_components(o, p.lam, norm_eps=p.norm_eps, out_dtype=dtype)
    enforce(forward_verdict(out, p))


@EVERY_DTYPE
def test_decoding_with_rotation(impl: Impl, dtype: torch.dtype) -> None:
    r, case = 3, Case(sq=2, sk=10, heads=2, heads_k=1, dtype=dtype, causal=True)
    q, p = make_pairs(r, case, impl.device)
    angles = torch.rand(12, 16, device=impl.device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    got, want = (
        attend(q.to(wider), q.new_zeros(2, 16, 1, 2, 32).to(wider),
               q.new_zeros(2, 16, 1, 64).to(wider), 0.5, p.k.to(wider), p.v.to(wider),
               cos.to(wider), sin.to(wider), cache_seqlens=1, causal=True)
        for attend, wider in ((impl.kvcache, dtype),
                              (reference.diff_flash_attn_with_kvcache, torch.float64))
    )  # fmt: skip
    assert (got.double() - want).norm() < 4 * torch.finfo(dtype).eps * want.norm()


@pytest.mark.needs("any_page")
@EVERY_DTYPE
@pytest.mark.parametrize("components", [False, True])
def test_decoding_with_a_ring(impl: Impl, dtype: torch.dtype, components: bool) -> None:
    """The first KV head's group sees everything, the second's sinks and a window."""
    r, cached = 3, 50
    q, p = make_pairs(r, Case(sq=1, sk=51, heads=2, heads_k=2, dtype=dtype), impl.device)
    slots = Ring.of_step(sink=4, recent=16, new=1).slots
    stored = [torch.randn(2, slots, *t.shape[3:], dtype=dtype) for t in (p.k, p.v)]
    lam = None if components else torch.rand(2, 1, 2, device=impl.device)
    results = []
    for attend, wider in (
        (impl.kvcache, dtype),
        (reference.diff_flash_attn_with_kvcache, torch.float64),
    ):
        full = [t[:, :, :1].to(wider).clone() for t in (p.k, p.v)]
        rings = [t.unsqueeze(2).to(impl.device, wider) for t in stored]
        new = [t[:, cached:].to(wider) for t in (p.k, p.v)]
        results.append(
            attend(
                q.to(wider), *full, lam if lam is None else lam.to(wide(wider)), *new,
                cache_seqlens=cached, causal=True, window_size=(15, 0), sink_size=4,
                streaming_heads=[False, True], k_stream=rings[0], v_stream=rings[1],
                return_lse=not components, return_components=components,
            )
        )  # fmt: skip
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert (got.double() - want).norm() < 4 * torch.finfo(dtype).eps * want.norm()


@EVERY_DTYPE
def test_one_signal_is_todays_form(impl: Impl, dtype: torch.dtype) -> None:
    p = make_problem(Case(dtype=dtype, causal=True, lam="token"), impl.device)
    grouped = impl.func(p.q, p.k, p.v, p.lam, causal=True)
    assert torch.equal(grouped, impl.func(flat(p.q), flat(p.k), p.v, p.lam, causal=True))


def make_small(maps: int = 5, kinds: int = 2, heads_k: int = 2) -> list[Tensor]:
    q, k = torch.randn(1, 6, 2, maps, 16), torch.randn(1, 6, heads_k, kinds, 16)
    return [q, k, torch.randn(1, 6, heads_k, 16)]


@pytest.mark.needs("has_ops")
@pytest.mark.parametrize(
    ("maps", "kinds", "heads_k", "lam", "words"),
    [
        (1, 2, 2, 0.5, ["q has shape", "r = 0", "r = 1 to 8 signal maps", "groups, r + 1"]),
        (10, 2, 2, 0.5, ["q has shape", "r = 9", "r = 1 to 8 signal maps"]),
        (5, 3, 2, 0.5, ["k has shape (1, 6, 2, 3, 16)", "accepted", "2, 2, headdim", "2, 1, head"]),
        (5, 5, 2, 0.5, ["k has shape (1, 6, 2, 5, 16)", "accepted"]),
        (5, 2, 4, 0.5, ["q has 2 groups", "k has 4 KV heads", "multiple of nheads_k"]),
        (5, 2, 2, (10,), ["lam has shape (10,)", "(groups·r,) = (8,)", "token and group"]),
        (5, 2, 2, (2,), ["lam has shape (2,)", "(groups·r,) = (8,)"]),
        (5, 2, 2, (1, 6, 5), ["lam has shape (1, 6, 5)", "(1, 6, 8)", "(1, 6, 2)"]),
    ],
)
def test_refusals(
    impl: Impl, maps: int, kinds: int, heads_k: int, lam: Any, words: list[str]
) -> None:
    q, k, v = (t.to(impl.device, impl.dtypes[0]) for t in make_small(maps, kinds, heads_k))
    lam = torch.rand(lam, device=impl.device) if isinstance(lam, tuple) else lam
    with refuses(*words):
        impl.func(q, k, v, lam)
    with refuses(*(word.replace("k has", "k_cache has") for word in words)):
        impl.kvcache(q, k, v, lam)
