"""The memory a kernel is held to, on simulated devices: huge strides, and faults that must show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cache import make_cache
from support.case import Case
from support.data import Problem, flat, make_problem
from support.impls import Impl
from support.sim_build import ptxsim
from support.sim_memory import described
from support.sim_regions import registered
from support.simulator import Simulator
from torch import Tensor

CASE = Case(batch=2, sq=20, sk=40, heads=2, heads_k=2, d=64, dv=128, dtype=torch.bfloat16)
DIMS = ["batch", "row", "head", "comp"]
# Bytes by which one dimension alone puts its last entry beyond what 32 bits count.
HUGE = {"2**31 bytes": 2**31, "2**32 bytes": 2**32, "2**32 elements": 2**33}


def run(impl: Impl, p: Problem) -> Tensor:
    out: Tensor = impl.func(p.q, p.k, p.v, p.lam, **p.options())
    return out


def sparse_like(small: Tensor, dim: int, reach: int, sim: Simulator) -> Tensor:
    """Zeros in the shape of `small`; memory is taken only where it is touched."""
    strides = list(small.stride())
    size = small.element_size()
    strides[dim] = -(-reach // size // (small.shape[dim] - 1)) // 8 * 8 + 8
    last = sum((n - 1) * stride for n, stride in zip(small.shape, strides, strict=True))
    storage = torch.frombuffer(sim.device.sparse(size * (last + 1)).numpy(), dtype=small.dtype)
    return storage.as_strided(small.shape, strides)


@pytest.mark.parametrize("reach", list(HUGE))
@pytest.mark.parametrize("dim", range(4), ids=DIMS)
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_huge_strides(impl: Impl, sim: Simulator, name: str, dim: int, reach: str) -> None:
    p = make_problem(CASE)
    small = getattr(p, name)
    if dim + 1 == small.dim():
        return  # v has no components
    huge = sparse_like(small, dim, HUGE[reach], sim).copy_(small)
    assert torch.equal(run(impl, p.but(**{name: huge})), run(impl, p))


@pytest.mark.parametrize("reach", list(HUGE))
@pytest.mark.parametrize("dim", range(3), ids=DIMS[:3])
def test_huge_output(
    impl: Impl, sim: Simulator, dim: int, reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The binding allocates outputs densely, so this one is put in behind it."""
    p = make_problem(CASE)
    expected = run(impl, p)
    huge = sparse_like(expected, dim, HUGE[reach], sim)

    def elsewhere(params: Any) -> None:
        (view,) = params.views("out")
        view.data, (view.batch, view.row, view.head, _) = huge.data_ptr(), huge.stride()
        sim.launch_described(params)

    monkeypatch.setattr(sim, "serve", elsewhere)
    run(impl, p)
    assert torch.equal(huge, expected)


@pytest.mark.parametrize("reach", list(HUGE))
@pytest.mark.parametrize("dim", range(3), ids=["block", "slot", "head"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_huge_caches(impl: Impl, sim: Simulator, name: str, dim: int, reach: str) -> None:
    """Read and appended to, in pages, by kernels for few rows and for many."""
    for sq in (1, 9):
        case = CASE.but(sq=sq, heads=4, causal=True, lam="float")
        near, far = (make_cache(case, impl, "paged16", [70, 33]) for _ in "ab")
        setattr(far, name, sparse_like(getattr(far, name), dim, HUGE[reach], sim))
        getattr(far, name).copy_(getattr(near, name))
        results = []
        for cache in (near, far):
            p = cache.problem
            k, v = flat(p.k)[:, 70:75], p.v[:, 70:75]
            results.append(
                impl.kvcache(
                    flat(p.q), cache.k, cache.v, 0.5, k, v, causal=True, num_splits=2,
                    **cache.arguments,
                )
            )  # fmt: skip
        assert torch.equal(*results) and torch.equal(near.k.nan_to_num(), far.k.nan_to_num())
        assert torch.equal(near.v.nan_to_num(), far.v.nan_to_num())


def rows_missing(params: Any) -> None:
    params.shape.seqlen_q -= 1


def a_key_too_many(params: Any) -> None:
    params.shape.seqlen_k += 1


def a_head_too_many(params: Any) -> None:
    params.shape.nheads += 2


def a_wrong_stride(params: Any) -> None:
    for view in params.views("k"):
        view.row += 8


def lse_beside_its_place(params: Any) -> None:
    for view in params.views("lse"):
        view.data += 4


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (rows_missing, AssertionError, "never written"),
        (a_key_too_many, ptxsim.OutOfBounds, "k|v"),
        (a_head_too_many, ptxsim.OutOfBounds, "Read"),
        (a_wrong_stride, ptxsim.OutOfBounds, "k"),
        (lse_beside_its_place, (ptxsim.OutOfBounds, AssertionError), "lse"),
    ],
)
def test_a_fault_is_seen(
    impl: Impl, sim: Simulator, monkeypatch: pytest.MonkeyPatch, fault: Any, error: Any, words: str
) -> None:
    """The params change behind the back of what was registered: the kernel strays."""
    p = make_problem(CASE.but(batch=1))
    # Behind each input lies memory that no tensor owns, not by chance another tensor of the call.
    q, k, v = (torch.cat([x, x], 1)[:, : x.shape[1]] for x in (p.q, p.k, p.v))
    p = p.but(q=q, k=k, v=v)

    def stray(params: Any) -> None:
        with registered(sim.device, described(params)):
            fault(params)
            sim.launch(params)

    run(impl, p)
    monkeypatch.setattr(sim, "serve", stray)
    with pytest.raises(error, match=words):
        run(impl, p)


def test_gaps_between_rows_are_not_there(
    impl: Impl, sim: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 64 in a buffer of 128; a head dim that is read too wide reaches into the gap."""
    p = make_problem(CASE)
    wide = torch.zeros(*p.q.shape[:-1], 128, dtype=p.q.dtype)[..., :64].copy_(p.q)

    def too_wide(params: Any) -> None:
        with registered(sim.device, described(params)):
            params.shape.headdim += 8
            sim.launch(params)

    run(impl, p.but(q=wide))
    monkeypatch.setattr(sim, "serve", too_wide)
    with pytest.raises(ptxsim.OutOfBounds, match="gap"):
        run(impl, p.but(q=wide))


def test_inputs_are_read_only(impl: Impl, sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    p = make_problem(CASE.but(dv=64, shared_k=True))

    def into_v(params: Any) -> None:
        with registered(sim.device, described(params)):
            (out,), (v,) = params.views("out"), params.views("v")
            out.data = v.data
            sim.launch(params)

    monkeypatch.setattr(sim, "serve", into_v)
    with pytest.raises(ptxsim.OutOfBounds, match="v"):
        run(impl, p)


def test_aliasing_inputs_are_one_region(impl: Impl) -> None:
    """q, k and v out of one projection; k is v in the last case."""
    qkv = torch.randn(1, 30, 8, 64).bfloat16()
    q, k, v = qkv[:, :, :4], qkv[:, :, 4:6], qkv[:, :, 6:]
    expected = impl.func(q.contiguous(), k.contiguous(), v.contiguous(), 0.5)
    assert torch.equal(impl.func(q, k, v, 0.5), expected)
    assert torch.equal(impl.func(q, k, k, 0.5), impl.func(q, k, k.clone(), 0.5))


def test_flat_heads_are_seen_as_they_lie(sim: Simulator) -> None:
    """A description is exact: the bytes of a strided view, no more."""
    p = sim.binding.FwdParams()
    p.shape.batch, p.shape.seqlen_q, p.shape.nheads, p.shape.headdim = 2, 3, 4, 8
    for view, data in zip(p.views("q"), (4096, 4096 + 16), strict=True):
        view.data, view.batch, view.row, view.head = data, 1000, 100, 16
    (q,) = described(p)
    assert (q.sizes, q.strides) == ([2, 3, 4, 2, 8], [1000, 100, 16, 8, 1])
    assert q.end - q.address == 2000 + 2 * 200 + 128
