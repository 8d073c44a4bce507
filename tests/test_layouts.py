"""Every published head order is a strided view, and gives the bits that a contiguous copy gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import check_forward, run_backward
from support.data import Problem, flat, make_problem
from support.impls import Impl
from torch import Tensor

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
CASE = Case(batch=2, sq=37, sk=50, heads=4, heads_k=2, d=32, dv=64, causal=True, norm="affine")


def component_major(x: Tensor) -> Tensor:
    """DiffLlama: component 1 is heads 0..H-1 of memory, component 2 heads H..2H-1."""
    stored = x.transpose(2, 3).contiguous()  # (b, s, 2, h, d)
    return stored.transpose(2, 3)


def heads_first(x: Tensor) -> Tensor:
    """(batch, heads, seqlen, d) storage, as Hugging Face's attention modules hold it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def sequence_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def slice_of_wider_rows(x: Tensor) -> Tensor:
    """A slice of a fused projection: the row stride is wider than the row, the gap is NaN."""
    gap = torch.full_like(x, torch.nan)
    return torch.cat([gap, x, gap], dim=2)[:, :, x.shape[2] : 2 * x.shape[2]]


def slice_of_wider_heads(x: Tensor) -> Tensor:
    """d of a padded head dim; last stride 1, and an offset of one element: no vector alignment."""
    padded = torch.full((*x.shape[:-1], x.shape[-1] + 3), torch.nan, dtype=x.dtype, device=x.device)
    padded[..., 1:-2] = x
    return padded[..., 1:-2]


def every_other_token(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], 2).flatten(1, 2)[:, ::2]


def last_stride_two(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


def last_dim_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    heads_first,
    sequence_first,
    slice_of_wider_rows,
    slice_of_wider_heads,
    every_other_token,
    last_stride_two,
    last_dim_first,
]
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)


def _run(impl: Impl, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, lse = impl.func(q, k, v, problem.lam, **problem.options(), return_lse=True)
    return out, lse


@DTYPE
@pytest.mark.parametrize("shared_k", [False, True], ids=["V1", "V2"])
def test_flat_and_five_d_heads_agree(impl: Impl, dtype: torch.dtype, shared_k: bool) -> None:
    p = make_problem(CASE.but(dtype=dtype, shared_k=shared_k), impl.device)
    expected = _run(impl, p, flat(p.q), flat(p.k), p.v)
    for q, k in [(p.q, p.k), (p.q, flat(p.k)), (flat(p.q), p.k)]:
        got = _run(impl, p, q, k, p.v)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@DTYPE
@LAYOUT
def test_strided_inputs_give_the_bits_of_contiguous_ones(
    impl: Impl, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    p = make_problem(CASE.but(dtype=dtype), impl.device)
    expected = _run(impl, p, p.q, p.k, p.v)
    got = _run(impl, p, layout(p.q), layout(p.k), layout(p.v))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@DTYPE
@LAYOUT
def test_gradients_of_strided_inputs(
    impl: Impl, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    p = make_problem(CASE.but(dtype=dtype), impl.device)

    def strided(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        q, k = (x.unflatten(2, (-1, 2)) for x in (q, k))
        out: Tensor = impl.func(layout(q), layout(k), layout(v), *args, **kwargs)
        return out

    expected, got = run_backward(impl.func, p), run_backward(strided, p)
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


@DTYPE
@pytest.mark.parametrize("layout", [component_major, heads_first], ids=lambda f: f.__name__)
def test_component_major_heads(
    impl: Impl, dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    p = make_problem(CASE.but(dtype=dtype), impl.device)
    got = _run(impl, p, component_major(p.q), component_major(p.k), layout(p.v))
    expected = _run(impl, p, flat(p.q), flat(p.k), p.v)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@DTYPE
def test_difflama_pairs_heads_half_way(impl: Impl, dtype: torch.dtype) -> None:
    """Pair h is query heads (h, h+H) and key heads (h//n, h//n + NK/2); V is cat of its halves."""
    b, s, heads, kv_pairs, d = 2, 20, 4, 2, 16
    q = torch.randn(b, 2 * heads, s, d).to(impl.device, dtype)  # as the module holds them
    k = torch.randn(b, 2 * kv_pairs, s, d).to(impl.device, dtype)
    v = torch.randn(b, 2 * kv_pairs, s, d).to(impl.device, dtype)
    q5 = q.unflatten(1, (2, heads)).permute(0, 3, 2, 1, 4)
    k5 = k.unflatten(1, (2, kv_pairs)).permute(0, 3, 2, 1, 4)
    assert q5.data_ptr() == q.data_ptr() and k5.data_ptr() == k.data_ptr()
    wide_v = torch.cat(v.chunk(2, dim=1), -1).transpose(1, 2)  # (b, s, kv_pairs, 2d)
    out = impl.func(q5, k5, wide_v, 0.7, causal=True)
    rows = []
    mask = torch.ones(s, s, dtype=torch.bool).tril()
    for h in range(heads):  # the module's own formula, head by head, in fp64
        kv = h // (heads // kv_pairs)
        maps = []
        for c in range(2):
            scores = q[:, h + c * heads].double() @ k[:, kv + c * kv_pairs].double().mT / d**0.5
            maps.append(scores.cpu().masked_fill(~mask, -torch.inf).softmax(-1))
        rows.append((maps[0] - 0.7 * maps[1]) @ wide_v[:, :, kv].double().cpu())
    expected = torch.stack(rows, 2)
    error = (out.double().cpu() - expected).norm() / expected.norm()
    assert error < 4 * torch.finfo(dtype).eps


@DTYPE
def test_phi4_value_pairs_are_a_view(impl: Impl, dtype: torch.dtype) -> None:
    """(B, S, 2 Hk, d) values seen as (B, S, Hk, 2d): cat(v[2h], v[2h+1]) without a copy."""
    p = make_problem(CASE.but(dtype=dtype, norm="none"), impl.device)
    v = p.v.reshape(2, 50, 4, 32)
    pairs = v.reshape(2, 50, 2, 64)
    assert pairs.data_ptr() == v.data_ptr()
    check_forward(impl, p.but(v=pairs))


@DTYPE
def test_diff_v2_packed_tokens(impl: Impl, dtype: torch.dtype) -> None:
    """DIFF V2 packs (N, 2h, d), (N, h_kv, d), (N, h_kv, d) and projects one lambda per head."""
    q = torch.randn(1, 30, 8, 64).to(impl.device, dtype)
    kv = torch.randn(1, 30, 4, 64).to(impl.device, dtype)  # one projection, split into k and v
    lam = torch.randn(1, 30, 4).to(impl.device).sigmoid()
    out = impl.func(q, kv[:, :, :2], kv[:, :, 2:], lam, causal=True)
    copies = (kv[:, :, :2].contiguous(), kv[:, :, 2:].contiguous())
    assert torch.equal(out, impl.func(q, *copies, lam, causal=True))


@DTYPE
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_broadcast_keys_and_values(impl: Impl, dtype: torch.dtype, dims: tuple[int, ...]) -> None:
    """Stride 0 on batch, sequence or heads, as expand makes it; gradients sum over it."""
    p = make_problem(CASE.but(dtype=dtype), impl.device)
    first = (slice(0, 1) if dim in dims else slice(None) for dim in range(3))
    index = tuple(first)
    k, v = p.k[index].expand_as(p.k), p.v[index].expand_as(p.v)
    got = _run(impl, p, p.q, k, v)
    expected = _run(impl, p, p.q, k.contiguous(), v.contiguous())
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    small = p.v[index].clone().requires_grad_()
    impl.func(p.q, k, small.expand_as(p.v), p.lam, **p.options()).backward(p.dout)
    full = p.v[index].expand_as(p.v).clone().requires_grad_()
    impl.func(p.q, k, full, p.lam, **p.options()).backward(p.dout)
    assert small.grad is not None and full.grad is not None
    expected_grad = full.grad.sum_to_size(small.shape)
    torch.testing.assert_close(small.grad, expected_grad)


@DTYPE
def test_broadcast_lambda(impl: Impl, dtype: torch.dtype) -> None:
    """A (batch, seqlen_q, nheads) lambda with stride 0 is the scalar, bit for bit."""
    p = make_problem(CASE.but(dtype=dtype), impl.device)
    scalar = torch.tensor(0.375, device=impl.device)
    for lam in [scalar.expand(2, 37, 4), scalar.expand(4), torch.full((4,), 0.375), 0.375]:
        lam = lam.to(impl.device) if torch.is_tensor(lam) else lam
        got = impl.func(p.q, p.k, p.v, lam, **p.options())
        assert torch.equal(got, impl.func(p.q, p.k, p.v, scalar, **p.options()))
    strided = torch.randn(4, 37, 2, device=impl.device).permute(2, 1, 0)
    got = impl.func(p.q, p.k, p.v, strided, **p.options())
    assert torch.equal(got, impl.func(p.q, p.k, p.v, strided.contiguous(), **p.options()))


@DTYPE
@pytest.mark.parametrize("dim", [0, 1, 2, 3, 4])
def test_garbage_strides_on_dims_of_size_one(impl: Impl, dtype: torch.dtype, dim: int) -> None:
    """The stride of a dimension of size 1 means nothing; views often leave garbage there."""
    shape = {0: (1, 5, 2, 2, 8), 1: (2, 1, 2, 2, 8), 2: (2, 5, 1, 2, 8), 3: (2, 5, 2, 2, 8)}
    q = torch.randn(shape.get(dim, (2, 5, 2, 2, 8))).to(impl.device, dtype)
    k = torch.randn(2 if dim else 1, 5, 1, 2, 8).to(impl.device, dtype)
    v = torch.randn(2 if dim else 1, 5, 1, 8).to(impl.device, dtype)
    if dim == 3:
        k = k[:, :, :, :1]  # V2: the component dim of k has size 1
    strange = list(k.stride())
    for i, size in enumerate(k.shape):
        strange[i] = 10**9 + 7 if size == 1 else strange[i]
    odd_k = k.as_strided(k.shape, strange)
    strange_q = [10**9 + 7 if n == 1 else s for n, s in zip(q.shape, q.stride(), strict=True)]
    odd_q = q.as_strided(q.shape, strange_q)
    odd_v = v.as_strided(v.shape, [10**9 + 7 if n == 1 else s
                                   for n, s in zip(v.shape, v.stride(), strict=True)])  # fmt: skip
    assert torch.equal(impl.func(odd_q, odd_k, odd_v, 0.5), impl.func(q, k, v, 0.5))


@DTYPE
def test_conjugated_and_negated_views_are_resolved(impl: Impl, dtype: torch.dtype) -> None:
    """A lazily negated view (the imaginary part of a conjugate) has the negative bit set."""
    if dtype in (torch.float32, torch.float64):
        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        lazy = torch.randn(2, 9, 4, 8, dtype=complex_dtype, device=impl.device).conj().imag
        assert lazy.is_neg()
        k, v = torch.randn_like(lazy.contiguous()), torch.randn_like(lazy.contiguous())
        got = impl.func(lazy, k, v[:, :, :2], 0.5)
        assert torch.equal(got, impl.func(lazy.resolve_neg().contiguous(), k, v[:, :, :2], 0.5))
    tied = torch.randn(2, 9, 4, 8).to(impl.device, dtype)  # q, k and v may alias one another
    copies = [tied.clone() for _ in range(3)]
    got = impl.func(tied, tied, tied[:, :, ::2], 0.5, causal=True)
    assert torch.equal(got, impl.func(copies[0], copies[1], copies[2][:, :, ::2], 0.5, causal=True))
