"""The hub's own tests of a build: outputs and gradients against the formula in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import diffattn_cuda

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, KV_HEADS = 4, 2


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def problem(d: int, dv: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 150, 2 * HEADS, d), (2, 150, 2 * KV_HEADS, d), (2, 150, KV_HEADS, dv)]
    tensors = [torch.randn(*s, device=DEVICE).to(dtype) for s in shapes]
    return [*tensors, torch.rand(HEADS, device=DEVICE)]


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d, dv", [(32, 64), (64, 128), (64, 64), (128, 256)])
def test_forward_and_backward(d: int, dv: int, dtype: torch.dtype) -> None:
    ours = [t.requires_grad_() for t in problem(d, dv, dtype)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    out = diffattn_cuda.diff_flash_attn_func(*ours, causal=True)
    want = diffattn_cuda.reference.diff_flash_attn_func(*exact, causal=True)
    limit = 4 * torch.finfo(dtype).eps
    assert relative(out, want) < limit
    dout = torch.randn_like(out)
    got = torch.autograd.grad(out, ours, dout)
    for a, b in zip(got, torch.autograd.grad(want, exact, dout.double())):  # noqa: B905  Python 3.9
        assert relative(a, b) < 2 * limit


@pytest.mark.kernels_ci
def test_decoding_appends() -> None:
    q, k, v, lam = problem(64, 128, torch.bfloat16)
    caches = [torch.cat([t, torch.zeros_like(t)], 1) for t in (k, v)]
    new = [t[:, :1].clone() for t in (k, v)]
    with torch.no_grad():
        out = diffattn_cuda.diff_flash_attn_with_kvcache(
            q[:, :1], *caches, lam, *new, cache_seqlens=150, causal=True
        )
        keys, values = (torch.cat([t, n], 1).double() for t, n in zip((k, v), new))  # noqa: B905
        want = diffattn_cuda.reference.diff_flash_attn_func(q[:, :1].double(), keys, values, lam)
    assert torch.equal(caches[0][:, 150:151], new[0])
    assert relative(out, want) < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.kernels_ci
def test_no_graph_break() -> None:
    q, k, v, lam = problem(64, 128, torch.bfloat16)
    function = torch.compile(
        diffattn_cuda.diff_flash_attn_func, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(function(q, k, v, lam), diffattn_cuda.diff_flash_attn_func(q, k, v, lam))
