"""Appending is an in-place operation: autograd has to learn of it, as of any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.impls import Impl
from torch import Tensor

pytestmark = pytest.mark.needs("has_ops")


def caches(impl: Impl) -> tuple[Tensor, Tensor]:
    dtype = impl.dtypes[-1]
    return (torch.zeros(2, 32, 4, 16, dtype=dtype, device=impl.device),
            torch.zeros(2, 32, 2, 32, dtype=dtype, device=impl.device))  # fmt: skip


def append(impl: Impl, k_cache: Tensor, v_cache: Tensor, function: Any = None, new: int = 1) -> Any:
    q, k, v = (torch.ones(2, n, h, d).to(k_cache) for n, h, d in ((1, 4, 16), (new, 4, 16),
                                                                  (new, 2, 32)))  # fmt: skip
    return (function or impl.kvcache)(q, k_cache, v_cache, 0.5, k, v, cache_seqlens=3)


def read(impl: Impl, k_cache: Tensor, v_cache: Tensor) -> Any:
    q = torch.ones(2, 1, 4, 16).to(k_cache)
    return impl.kvcache(q, k_cache, v_cache, 0.5, cache_seqlens=3)


def test_a_version_a_call(impl: Impl) -> None:
    k_cache, v_cache = caches(impl)
    for call in range(1, 4):
        append(impl, k_cache, v_cache)
        read(impl, k_cache, v_cache)  # writes nothing
        assert (k_cache._version, v_cache._version) == (call, call)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_versions_without_autograd(impl: Impl, mode: Any) -> None:
    """As in torch: a tensor that autograd knows may be written where nothing is recorded."""
    k_cache, v_cache = caches(impl)
    with mode():
        append(impl, k_cache, v_cache)
    assert (k_cache._version, v_cache._version) == (1, 1)


@pytest.mark.parametrize("which", [0, 1])
def test_backward_through_an_overwritten_cache(impl: Impl, which: int) -> None:
    saved = caches(impl)
    weight = torch.ones_like(saved[which], requires_grad=True)
    y = (saved[which] * weight).sum()
    append(impl, *saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("raw", [False, True], ids=["function", "op"])
def test_a_cache_of_inference_mode(impl: Impl, raw: bool) -> None:
    with torch.inference_mode():
        k_cache, v_cache = caches(impl)
        append(impl, k_cache, v_cache)
    before = k_cache.clone()
    with pytest.raises(RuntimeError, match="inference tensor"):
        append(impl, k_cache, v_cache, raw_decode if raw else None)
    assert torch.equal(k_cache, before)


def raw_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, lam: float, k: Tensor, v: Tensor,
               cache_seqlens: int) -> Any:  # fmt: skip
    lam_rows = torch.full(q.shape[:1] + (1, 2), lam, device=q.device)
    lam_rows = lam_rows.to(torch.promote_types(q.dtype, torch.float32))
    seqlens = torch.full((2,), cache_seqlens, dtype=torch.int32, device=q.device)
    q, k_cache, k = (x.unflatten(2, (-1, 2)) for x in (q, k_cache, k))
    return torch.ops.diffattn.decode(
        q, k_cache, v_cache, lam_rows, k, v, None, None, seqlens, None, None, None, None, 0.25, -1,
        -1, 0, -1, True, None, 1.0, 0,
    )  # fmt: skip


def test_versions_of_the_raw_op(impl: Impl) -> None:
    k_cache, v_cache = caches(impl)
    append(impl, k_cache, v_cache, raw_decode)
    assert (k_cache._version, v_cache._version) == (1, 1)


def test_gradients_of_the_raw_op(impl: Impl) -> None:
    k_cache, v_cache = caches(impl)
    with pytest.raises(RuntimeError, match="no gradient"):
        append(impl, k_cache.requires_grad_(), v_cache, raw_decode)


@pytest.mark.needs("traces")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(impl: Impl, backend: str) -> None:
    torch._dynamo.reset()
    saved = caches(impl)
    weight = torch.ones_like(saved[0], requires_grad=True)
    y = (saved[0] * weight).sum()
    append(impl, *saved, torch.compile(impl.kvcache, fullgraph=True, backend=backend))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
