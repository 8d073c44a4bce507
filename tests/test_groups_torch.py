"""Groups of maps in torch: opcheck, torch.compile, autocast, gradcheck, threads, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.impls import Impl
from support.threads import threads
from torch import Tensor

from diffattn_cuda import arguments, reference

pytestmark = [pytest.mark.needs(what) for what in ("has_ops", "traces")]
R, GROUPS, HEADS_K, D, DV = 3, 4, 2, 16, 32


def tensors(impl: Impl, seqlen: int = 9, dtype: torch.dtype | None = None) -> list[Tensor]:
    """q, k, v and λ of each group and token, which require gradients."""
    shapes = [(2, seqlen, GROUPS, R + 1, D), (2, seqlen, HEADS_K, 2, D), (2, seqlen, HEADS_K, DV)]
    dtype = impl.dtypes[0] if dtype is None else dtype
    made = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    made = [x.to(impl.device, dtype) for x in made]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    lam = torch.rand(2, seqlen, GROUPS, dtype=torch.float64).to(impl.device, wide)
    return [x.requires_grad_() for x in (*made, lam)]


def results(attend: Any, leaves: list[Tensor], **options: Any) -> list[Tensor]:
    """out, LSE, and gradients of both."""
    out, lse = attend(*leaves, causal=True, norm_eps=1e-2, return_lse=True, **options)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    loss = (out * weights).sum().double() + lse.square().sum().double()
    return [out, lse, *torch.autograd.grad(loss, leaves)]


def op_arguments(impl: Impl, packed: bool, training: bool) -> tuple[Any, ...]:
    q, k, v, _ = (t[0] if packed else t for t in tensors(impl))
    q, k, v = (t.detach().clone().requires_grad_(training) for t in (q, k, v))
    lam = torch.rand(*q.shape[:-3], GROUPS * R, device=impl.device).requires_grad_(training)
    weight = torch.rand(DV, device=impl.device)
    starts = torch.tensor([0, 4, 9], dtype=torch.int32, device=impl.device) if packed else None
    longest = (5, 5) if packed else (0, 0)
    return (q, k, v, lam, weight, starts, starts, *longest, 0.3, -1, 0, 0, arguments.ALL_STREAM,
            1e-5, 0.5, False, training)  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA's kernels take pairs")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(impl: Impl, packed: bool, training: bool) -> None:
    args = op_arguments(impl, packed, training)
    torch.library.opcheck(torch.ops.diffattn.fwd, args)
    if not training:
        out, lse, o, o2, rstd = torch.ops.diffattn.fwd(*args[:-1], True)
        torch.library.opcheck(
            torch.ops.diffattn.bwd,
            (
                torch.randn_like(out),
                torch.randn_like(lse),
                *args[:5],
                o,
                o2,
                lse,
                rstd,
                *args[5:-1],
            ),
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_equals_eager(impl: Impl, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(impl.func, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for seqlen in (9, 12) if dynamic else (9,):
        leaves = tensors(impl, seqlen)
        for got, want in zip(results(compiled, leaves), results(impl.func, leaves), strict=True):
            torch.testing.assert_close(got, want)


def test_autocast(impl: Impl) -> None:
    """q, k and v are cast; λ is not."""
    leaves = tensors(impl, dtype=torch.float32)
    with torch.autocast(impl.device.type, dtype=torch.bfloat16):
        got = impl.func(*leaves, causal=True)
    want = impl.func(*(t.bfloat16() for t in leaves[:3]), leaves[3], causal=True)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(impl: Impl, dtype: torch.dtype, masked: bool) -> None:
    options: dict[str, Any] = {"causal": True}
    if masked:
        options |= {"window_size": (1, 0), "sink_size": 1, "streaming_heads": [True, False]}
    leaves = [t.detach()[:1, :4].requires_grad_() for t in tensors(impl, dtype=dtype)]

    def function(*leaves: Tensor) -> Any:
        return impl.func(*leaves, norm_eps=1e-2, out_scale=0.3, return_lse=True, **options)

    assert torch.autograd.gradcheck(function, leaves, atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.needs("same_bits")
def test_any_number_of_threads(impl: Impl) -> None:
    """More threads than KV heads, of which each serves some; the norm weight's gradient too."""
    leaves = tensors(impl, 150)
    weight = torch.rand(DV, device=impl.device, dtype=leaves[3].dtype).requires_grad_()
    each = []
    for count in (1, 2, 7):
        with threads(count):
            out = impl.func(*leaves, norm_eps=1e-2, norm_weight=weight)
            each.append([out, *torch.autograd.grad(out.float().square().sum(), [*leaves, weight])])
    for other in each[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each[0], other, strict=True))


def test_the_norm_weight_has_a_gradient(impl: Impl) -> None:
    leaves = tensors(impl, 70, dtype=torch.float32)
    weight = torch.rand(DV, device=impl.device, requires_grad=True)
    losses = [
        attend(*leaves, norm_eps=1e-2, norm_weight=weight).square().sum()
        for attend in (impl.func, reference.diff_flash_attn_func)
    ]
    (got,), (want,) = (torch.autograd.grad(loss, weight) for loss in losses)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.needs("contains_nan_backward")
@pytest.mark.parametrize("which", range(R + 1))
def test_nan_in_one_map_stays_there(impl: Impl, which: int) -> None:
    """Of a signal map it reaches one head; of the noise the group's. No other group sees it."""
    leaves = tensors(impl, 20, dtype=torch.float32)
    q = leaves[0].detach().clone()
    q[0, 3, 1, which] = torch.nan
    q.requires_grad_()
    out = impl.func(q, *leaves[1:], causal=True)
    hit = out.isnan().any(-1)[0, 3]
    heads = list(range(R, 2 * R)) if which == R else [R + which]
    assert hit.nonzero().flatten().tolist() == heads
    assert int(out.isnan().any(-1).sum()) == len(heads)
    (dq,) = torch.autograd.grad(out[:, 4:].sum(), q)
    assert not bool(dq[:, :3].isnan().any() or dq[:, 4:].isnan().any())
    assert not bool(dq[:, :, [0, 2, 3]].isnan().any())


def test_rows_without_keys(impl: Impl) -> None:
    q, k, v, lam = tensors(impl, 9, dtype=torch.float32)
    out, lse = impl.func(q, k[:, :5], v[:, :5], lam, causal=True, return_lse=True)
    assert bool((out[:, :4] == 0).all()) and bool((lse[..., :4] == -torch.inf).all())
    gradients = torch.autograd.grad(out.sum(), (q, k, v, lam))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert bool((gradients[0][:, :4] == 0).all())


def test_nothing_to_do(impl: Impl) -> None:
    q, k, v, lam = tensors(impl, 9)
    for queries, keys in ((0, 9), (9, 0), (0, 0)):
        out, lse = impl.func(
            q[:, :queries], k[:, :keys], v[:, :keys], lam[:, :queries], return_lse=True
        )
        assert out.shape == (2, queries, GROUPS * R, DV) and bool((out == 0).all())
        assert lse.shape == (R + 1, 2, GROUPS, queries)
        dq = torch.autograd.grad(out.sum(), q)[0]
        assert bool((dq == 0).all())


def test_autocast_of_fp16_queries(impl: Impl) -> None:
    """The CPU's autocast refuses to join tensors of fp16, as decoding does with q."""
    q, k, v, _ = (t.detach() for t in tensors(impl, dtype=torch.float32))
    caches = k.bfloat16(), v.bfloat16()
    with torch.autocast(impl.device.type, dtype=torch.bfloat16):
        got = impl.kvcache(q.half(), *caches, 0.5)
    assert torch.equal(got, impl.kvcache(q.half().bfloat16(), *caches, 0.5))
