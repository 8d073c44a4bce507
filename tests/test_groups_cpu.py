"""Groups of maps in the CPU's kernels: threads that share a KV head, maps alike, poisoned rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import forward_verdict
from support.data import wide
from support.impls import Impl
from support.law import enforce
from support.threads import threads
from test_groups import check_gradients, make_pairs
from torch import Tensor

# The second is what a CPU has and no GPU.
pytestmark = [pytest.mark.needs(what) for what in ("same_bits", "any_layout")]
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)

# Fewer KV heads than threads, and numbers of them that threads do not divide. r is odd and even.
FEW_HEADS = [
    (4, Case(batch=1, sq=300, sk=300, heads=1, heads_k=1, causal=True, norm="affine", lam="token")),
    (3, Case(batch=1, sq=150, sk=400, heads=4, heads_k=2, d=16, dv=16, shared_k=True, lam="head")),
    (2, Case(batch=3, sq=90, sk=200, heads=1, heads_k=1, d=24, dv=48, window=(40, 9))),
    (8, Case(batch=1, sq=120, sk=120, heads=3, heads_k=3, d=8, dv=16, causal=True, window=(20, 0),
             sink=30, streaming=(True, False, True), lam="negative", norm="plain")),
]  # fmt: skip


def backward(impl: Impl, q: Tensor, p: Any) -> list[Tensor]:
    weight = None if p.norm_weight is None else p.norm_weight.clone().requires_grad_()
    lam = p.lam_rows(wide(q.dtype)).clone()
    leaves = [t.detach().clone().requires_grad_() for t in (q, p.k, p.v, lam)]
    options = p.options() | ({} if weight is None else {"norm_weight": weight})
    out, lse = impl.func(*leaves, **options, return_lse=True)
    loss = (out * p.dout).sum() + lse[lse.isfinite()].square().sum()
    return list(torch.autograd.grad(loss, leaves if weight is None else [*leaves, weight]))


@EVERY_DTYPE
@pytest.mark.parametrize(("r", "base"), FEW_HEADS, ids=str)
def test_gradients_have_the_same_bits_on_any_number_of_threads(
    impl: Impl, r: int, base: Case, dtype: torch.dtype
) -> None:
    q, p = make_pairs(r, base.but(dtype=dtype), impl.device)
    with threads(1):
        alone = backward(impl, q, p)
    for count in (2, 3, 5):
        with threads(count):
            shared = backward(impl, q, p)
        assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True)), count


@EVERY_DTYPE
@pytest.mark.parametrize(("r", "base"), FEW_HEADS[:2], ids=str)
def test_gradients_of_threads_that_share_a_head(
    impl: Impl, r: int, base: Case, dtype: torch.dtype
) -> None:
    q, p = make_pairs(r, base.but(dtype=dtype), impl.device)
    lam = p.lam_rows(wide(dtype)).clone()
    leaves = [t.detach().clone().requires_grad_() for t in (q, p.k, p.v, lam)]
    with threads(5):
        out = impl.func(*leaves, **p.options())
        got = dict(zip("qkv", torch.autograd.grad(out, leaves, p.dout), strict=False))
    check_gradients(got, q, p.but(lam=lam), r)


@EVERY_DTYPE
@pytest.mark.parametrize("far", [2.0**-4, 2.0**-8, 0.0])
def test_signals_next_to_their_noise(impl: Impl, far: float, dtype: torch.dtype) -> None:
    """Both maps are nearly one, and λ = 1 cancels them: what is left has the law's digits."""
    r, case = 3, Case(sq=70, sk=70, heads=2, heads_k=1, shared_k=True, dtype=dtype, causal=True)
    q, p = make_pairs(r, case, impl.device)
    near = (q[..., r:, :].double() + far * q[..., :r, :].double()).to(dtype)
    q = torch.cat((near, q[..., r:, :]), -2)
    noise = q[..., r:, :].expand(near.shape)
    p = p.but(q=torch.stack((near, noise), -2).flatten(2, 3), lam=1.0)
    leaves = [t.detach().clone().requires_grad_() for t in (q, p.k, p.v)]
    out = impl.func(*leaves, 1.0, **p.options())
    if far == 0:  # the product that is subtracted is not rounded before
        assert out.abs().max() <= 4 * torch.finfo(wide(dtype)).eps * p.v.abs().max()
        return
    enforce(forward_verdict(out.detach(), p))
    got = dict(zip("qkv", torch.autograd.grad(out, leaves, p.dout), strict=True))
    check_gradients(got, q, p, r)


@EVERY_DTYPE
def test_what_no_row_sees_is_not_read(impl: Impl, dtype: torch.dtype) -> None:
    """NaN in keys outside every window, in the rows of another sequence, in free slots."""
    r, case = 4, Case(batch=1, sq=40, sk=200, heads=2, heads_k=1, dtype=dtype)
    q, p = make_pairs(r, case, impl.device)
    window: dict[str, Any] = {"causal": True, "window_size": (20, 0)}
    poisoned = [t.clone() for t in (p.k, p.v)]
    for t in poisoned:
        t[:, :139] = torch.nan
    for lam, results in ((0.5, "return_lse"), (None, "return_components")):
        clean, spoilt = (
            impl.func(q, *kv, lam, **window, **{results: True}) for kv in ((p.k, p.v), poisoned)
        )
        assert all(torch.equal(a, b) for a, b in zip(clean, spoilt, strict=True))
    caches = [torch.full((1, 300, *t.shape[2:]), torch.nan, dtype=dtype) for t in (p.k, p.v)]
    for cache, t in zip(caches, (p.k, p.v), strict=True):
        cache[:, 139:200] = t[:, 139:]
    for rows in (40, 3):  # by the forward's kernel, and by decoding's
        last = q[:, -rows:]
        got = impl.kvcache(last, *caches, 0.5, cache_seqlens=200, **window)
        want = impl.func(last, p.k, p.v, 0.5, **window)
        error = (got.double() - want.double()).norm()
        assert error <= 4 * torch.finfo(dtype).eps * want.double().norm()


@EVERY_DTYPE
@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("r", [1, 2, 5])
def test_a_step_gives_what_pairs_give(impl: Impl, r: int, rows: int, dtype: torch.dtype) -> None:
    """Heads of several groups and KV heads: each row is in its place."""
    case = Case(batch=2, sq=rows, sk=90, heads=6, heads_k=2, dtype=dtype, lam="token")
    q, p = make_pairs(r, case, impl.device)
    bound = 8 * torch.finfo(dtype).eps
    for options in ({"return_lse": True}, {"return_components": True}):
        lam = p.lam if "return_lse" in options else None
        got, lse = impl.kvcache(q, p.k, p.v, lam, cache_seqlens=90, num_splits=3, **options)
        for g in range(6):
            for i in range(r):
                one = q[:, :, g : g + 1, [i, r]]
                kv = slice(g // 3, g // 3 + 1)
                own = lam if lam is None else lam[..., g * r + i : g * r + i + 1]
                want, want_lse = impl.kvcache(
                    one, p.k[:, :, kv], p.v[:, :, kv], own, cache_seqlens=90, **options
                )
                if lam is None:
                    mine, mine_lse = got[:, :, g, [i, r]], lse[:, g, [i, r]]
                    want, want_lse = want[:, :, 0], want_lse[:, 0]
                else:
                    mine, mine_lse = got[:, :, g * r + i], lse[[i, r], :, g]
                    want, want_lse = want[:, :, 0], want_lse[:, :, 0]
                assert (mine.double() - want.double()).norm() <= bound * want.double().norm()
                assert (mine_lse - want_lse).abs().max() <= 1e-5
