"""Does an installed wheel work here? Forward, backward and decoding against the eager formula.

    python tests/smoke.py

Needs only torch and the installed package; CI runs it with another torch than the wheel's.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch

import diffattn_cuda
from diffattn_cuda import reference

B, S, H, D = 2, 130, 4, 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative error of the whole tensor (Frobenius norm)."""
    return float((got.detach().double() - want.detach()).norm() / want.detach().norm())


def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    """q and k (B, S, 2H, D), v (B, S, H, 2D), dO (B, S, H, 2D), norm weight (2D,) fp32."""
    gen = torch.Generator().manual_seed(0)
    shapes = [(B, S, 2 * H, D), (B, S, 2 * H, D), (B, S, H, 2 * D), (B, S, H, 2 * D)]
    return [torch.randn(*s, generator=gen).to(dtype) for s in shapes]


def check(name: str, got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    found = error(got, want)
    print(f"  {name:<8} error {found:.1e}")
    if not found <= TOLERANCE[dtype]:
        raise SystemExit(f"{name} in {dtype}: error {found:.1e}, allowed {TOLERANCE[dtype]:.0e}")


def forward(package: ModuleType, x: list[torch.Tensor]) -> torch.Tensor:
    """Causal attention with V1's epilogue; x is q, k, v, λ, norm weight."""
    out: torch.Tensor = package.diff_flash_attn_func(
        *x[:4], causal=True, norm_weight=x[4], norm_eps=1e-5, out_scale=0.2
    )
    return out


def train_step(dtype: torch.dtype) -> None:
    """Forward and backward with the fused norm, every gradient."""
    q, k, v, dout = tensors(dtype)
    lam, weight = torch.tensor(0.7), torch.linspace(0.5, 1.5, 2 * D)
    ours = [x.clone().requires_grad_() for x in (q, k, v, lam, weight)]
    exact = [x.double().requires_grad_() for x in (q, k, v, lam, weight)]
    got, want = forward(diffattn_cuda, ours), forward(reference, exact)
    check("out", got, want, dtype)
    grads = torch.autograd.grad(got, ours, dout)
    wants = torch.autograd.grad(want, exact, dout.double())
    for name, a, b in zip(("dq", "dk", "dv", "dλ", "dweight"), grads, wants, strict=True):
        check(name, a, b, dtype)


def decode_step(dtype: torch.dtype) -> None:
    """The last token of each sequence: its key and value are appended to a longer cache."""
    q, k, v, _ = tensors(dtype)
    k_cache, v_cache = (
        torch.zeros(B, 256, 2 * H, D).to(dtype),
        torch.zeros(B, 256, H, 2 * D).to(dtype),
    )
    k_cache[:, : S - 1], v_cache[:, : S - 1] = k[:, :-1], v[:, :-1]
    got = diffattn_cuda.diff_flash_attn_with_kvcache(
        q[:, -1:], k_cache, v_cache, 0.7, k[:, -1:], v[:, -1:], cache_seqlens=S - 1, causal=True
    )
    want = reference.diff_flash_attn_func(q[:, -1:].double(), k.double(), v.double(), 0.7)
    assert isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor)
    check("decode", got, want, dtype)
    assert torch.equal(k_cache[:, S - 1], k[:, -1]), "the new key is not in the cache"


def main() -> None:
    print(f"torch {torch.__version__}, package from {Path(diffattn_cuda.__file__).parent}")
    for dtype in TOLERANCE:
        print(dtype)
        train_step(dtype)
        decode_step(dtype)
    print("smoke test passed")


if __name__ == "__main__":
    main()
