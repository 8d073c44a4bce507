"""V as two strided halves, (.., nheads_k, 2, d): the bits of V in one piece."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cache import make_cache
from support.case import DTYPES, Case, short
from support.data import Problem, flat, make_problem
from support.impls import Impl
from support.refusal import refuses
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from diffattn_cuda import diff_flash_attn_backward, reference

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
CASES = [
    Case(sq=70, sk=90, heads=4, heads_k=2, d=64, dv=128, causal=True),
    Case(sq=33, sk=40, d=8, dv=16, lam="token"),
    Case(sq=130, sk=130, d=24, dv=48, heads=2, heads_k=2, causal=True, window=(20, 0), sink=3,
         streaming=(True, False)),
    Case(sq=20, sk=150, d=128, dv=256, norm="affine", softcap=2.0),
    Case(sq=40, sk=70, d=64, dv=128, shared_k=True),
]  # fmt: skip
EVERY_CASE = pytest.mark.parametrize("base", CASES, ids=str)


def apart(v: Tensor) -> Tensor:
    """The same numbers, first halves of all heads before second halves: DiffLlama's order."""
    halves = v.unflatten(-1, (2, -1)).transpose(-3, -2).contiguous()  # (.., 2, nheads_k, d)
    return halves.transpose(-3, -2)


def gradients(function: Any, p: Problem, v: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (p.q, p.k, v)]
    out = function(*leaves, p.lam, **p.options() | options)
    return out, *torch.autograd.grad(out, leaves, p.dout)


@EVERY_CASE
@DTYPE
def test_same_bits_as_in_one_piece(impl: Impl, base: Case, dtype: torch.dtype) -> None:
    p = make_problem(base.but(dtype=dtype), impl.device)
    v = apart(p.v)
    whole = gradients(impl.func, p, p.v, deterministic=True)
    halves = gradients(impl.func, p, v, deterministic=True)
    assert halves[3].shape == v.shape
    for got, expected in zip(halves, whole, strict=True):
        assert torch.equal(got.reshape(expected.shape), expected)


def test_the_reference_takes_halves() -> None:
    p = make_problem(CASES[0].but(dtype=torch.float64))
    whole, halves = (gradients(reference.diff_flash_attn_func, p, v) for v in (p.v, apart(p.v)))
    assert torch.equal(whole[0], halves[0])
    assert torch.equal(whole[3], halves[3].flatten(3))


def test_halves_that_are_the_same_numbers(impl: Impl) -> None:
    """Expanded: the second half lies where the first does."""
    p = make_problem(CASES[0].but(dtype=impl.dtypes[-1]), impl.device)
    one = p.v[..., :64].unsqueeze(3)
    got = impl.func(p.q, p.k, one.expand(-1, -1, -1, 2, -1), 0.6)
    assert torch.equal(got, impl.func(p.q, p.k, torch.cat((one, one), -1).flatten(3), 0.6))


@DTYPE
def test_packed_components_and_parts(impl: Impl, dtype: torch.dtype) -> None:
    p = make_problem(CASES[0].but(dtype=dtype, batch=1, sk=70), impl.device)
    cu = torch.tensor([0, 20, 20, 70], dtype=torch.int32, device=impl.device)
    o, lse = impl.func(p.q, p.k, p.v, None, return_components=True)
    results = []
    for v in (p.v, apart(p.v)):
        packed = impl.varlen(p.q[0], p.k[0], v[0], p.lam, cu, cu, 50, 50, causal=True)
        maps = impl.func(p.q, p.k, v, None, return_components=True)
        part = diff_flash_attn_backward(p.dout, p.q, p.k, v, p.lam, o, lse, deterministic=True)
        assert part[2].shape == v.shape
        results.append((packed, *maps, *(x.flatten(3) for x in part[:3])))
    for whole, halves in zip(*results, strict=True):
        assert torch.equal(whole, halves)


@DTYPE
@pytest.mark.parametrize("d", [24, 64])
@pytest.mark.parametrize("sq", [1, 5, 40])
@pytest.mark.parametrize("kind", ["plain", "heads_first", "paged16"])
def test_caches(impl: Impl, kind: str, sq: int, d: int, dtype: torch.dtype) -> None:
    """Appended to in place, from new values in either form."""
    case = Case(sq=sq, heads=2, heads_k=2, d=d, dv=2 * d, dtype=dtype, causal=True)
    cache = make_cache(case, impl, kind, [10, 100, 131])
    p = cache.problem
    k, v = flat(p.k)[:, :3], p.v[:, :3]

    def step(v_cache: Tensor, v_new: Tensor) -> tuple[Tensor, Tensor]:
        out = impl.kvcache(flat(p.q), cache.k.clone(), v_cache, p.lam, k, v_new,
                           **cache.arguments | p.options())  # fmt: skip
        return out, v_cache.flatten(3)

    whole = step(cache.v.clone(), v)
    in_cache = apart(cache.v) if impl.any_layout else cache.v.unflatten(-1, (2, -1)).clone()
    for stored, new in (
        (in_cache.clone(), apart(v)),
        (in_cache.clone(), v),
        (cache.v.clone(), apart(v)),
    ):
        for got, expected in zip(step(stored, new), whole, strict=True):
            assert torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.needs("any_layout")
@DTYPE
def test_a_ring(impl: Impl, dtype: torch.dtype) -> None:
    """Also a step longer than the ring has room for, which attends before it overwrites."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(impl.device, dtype)

    q, k, v = draw(2, 20, 4, 32), draw(2, 20, 4, 32), draw(2, 20, 2, 64)
    k_full, v_full = draw(2, 200, 1, 2, 32), draw(2, 200, 1, 64)
    k_ring, v_ring = draw(2, 48, 1, 2, 32), draw(2, 48, 1, 64)
    results = []
    for form in (Tensor.clone, apart):
        caches = [form(x) for x in (v_full, v_ring)]  # type: ignore[operator]
        out = impl.kvcache(
            q, k_full.clone(), caches[0], 0.8, k, form(v), cache_seqlens=150, causal=True,  # type: ignore[operator]
            window_size=(20, 0), sink_size=4, streaming_heads=[False, True],
            k_stream=k_ring.clone(), v_stream=caches[1],
        )  # fmt: skip
        results.append((out, *(x.flatten(3) for x in caches)))
    for whole, halves in zip(*results, strict=True):
        assert torch.equal(whole, halves)


@pytest.mark.needs("any_layout")
def test_a_ring_of_every_head(impl: Impl) -> None:
    """The cache of full heads has none, in either form: only the ring says how many maps K has."""
    dtype = impl.dtypes[-1]
    q, k = (torch.ones(1, 3, n, 32, device=impl.device, dtype=dtype) for n in (2, 1))
    v, v_ring = (torch.ones(1, n, 1, 64, device=impl.device, dtype=dtype) for n in (3, 32))
    k_full, k_ring = (torch.ones(1, 32, n, 32, device=impl.device, dtype=dtype) for n in (0, 1))
    outs = [
        impl.kvcache(
            q, k_full, v_full, 0.5, k, v, cache_seqlens=5, causal=True, window_size=(20, 0),
            k_stream=k_ring.clone(), v_stream=v_ring.clone(),
        )
        for v_full in (v_ring[:, :, :0], apart(v_ring)[:, :, :0])
    ]  # fmt: skip
    assert torch.equal(*outs) and bool(outs[0].isfinite().all())


@pytest.mark.needs("any_layout")
def test_v_is_not_copied(impl: Impl) -> None:
    p = make_problem(CASES[0].but(dtype=impl.dtypes[-2]), impl.device)
    v = apart(p.v)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run:
        gradients(impl.func, p, v)
    copies = ("aten::copy_", "aten::clone", "aten::contiguous")
    sizes = [list(v.shape), list(p.v.shape)]
    found = [
        e
        for e in run.events()
        if e.name in copies and e.input_shapes and e.input_shapes[0] in sizes
    ]
    assert not found


@pytest.mark.needs("traces")
def test_ops_and_compile(impl: Impl) -> None:
    p = make_problem(CASES[0].but(dtype=impl.dtypes[-2], batch=1), impl.device)
    q, k, v = (x.detach().clone().requires_grad_() for x in (p.q, p.k, apart(p.v)))
    lam, scale = p.lam_rows(torch.float32).contiguous(), p.softmax_scale()
    options = (None, None, None, 0, 0, scale, *p.mask(), None, 1.0, False, True)
    torch.library.opcheck(torch.ops.diffattn.fwd, (q, k, v, lam, *options))
    torch._dynamo.reset()
    compiled = torch.compile(impl.func, fullgraph=True)
    got, eager = gradients(compiled, p, apart(p.v)), gradients(impl.func, p, apart(p.v))
    for a, b in zip(got, eager, strict=True):
        assert torch.equal(a, b)


def test_what_is_no_pair_of_halves(impl: Impl) -> None:
    p = make_problem(Case(sq=9, sk=9, dtype=impl.dtypes[-1]), impl.device)
    with refuses("v has shape (2, 9, 1, 3, 32)"):
        impl.func(p.q, p.k, p.v.new_zeros(2, 9, 1, 3, 32), 0.5)
    with refuses("v has shape"):
        impl.func(p.q, p.k, p.v.new_zeros(2, 9, 1, 2, 16), 0.5)
