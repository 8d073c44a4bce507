"""Two relatives of differential attention, made of its two maps' own results: DINT and DGSA.

    DINT (arXiv 2501.17486)   A1 − λ·A2 + λ·G, where each row of G is the mean of A1's rows
    DGSA (arXiv 2505.24054)   g·A1 − (1 − g)·A2, with a gate g of each token and head

return_components=True gives O1 = A1·V and O2 = A2·V. G·V needs no map: it is the mean of O1's rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffattn_cuda import diff_flash_attn_func


def dint(q: Tensor, k: Tensor, v: Tensor, lam: Tensor) -> Tensor:
    """(batch, seqlen, nheads, dv), before its norm; of a whole sequence, without a mask."""
    o, _ = diff_flash_attn_func(q, k, v, None, return_components=True)
    signal, noise = o.unbind(-2)
    return signal + lam * (signal.mean(1, keepdim=True) - noise)


def dgsa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """gate: (batch, seqlen, nheads), between 0 and 1; causal."""
    o, _ = diff_flash_attn_func(q, k, v, None, causal=True, return_components=True)
    signal, noise = o.unbind(-2)
    return gate[..., None] * signal - (1 - gate[..., None]) * noise


def maps(q: Tensor, k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """A1 and A2 by the formula, each (batch, nheads, seqlen, seqlen)."""
    scores = torch.einsum("bihcd,bjhcd->cbhij", q, k) * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    signal, noise = scores.softmax(-1)
    return signal, noise


def check(name: str, fused: Tensor, attention: Tensor, leaves: list[Tensor]) -> None:
    formula = torch.einsum("bhij,bjhe->bihe", attention, leaves[2])
    torch.testing.assert_close(fused, formula, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in (fused, formula)]
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    print(f"{name}: output {tuple(fused.shape)} and {len(leaves)} gradients agree with the formula")


def main() -> None:
    q, k = torch.randn(2, 2, 100, 4, 2, 32, requires_grad=True).unbind()
    v = torch.randn(2, 100, 4, 64, requires_grad=True)

    lam = torch.tensor(0.8, requires_grad=True)
    signal, noise = maps(q, k, causal=False)
    integral = signal.mean(-2, keepdim=True)
    check("DINT", dint(q, k, v, lam), signal + lam * (integral - noise), [q, k, v, lam])

    gate = torch.rand(2, 100, 4, requires_grad=True)
    of_rows = gate.transpose(1, 2)[..., None]
    signal, noise = maps(q, k, causal=True)
    check("DGSA", dgsa(q, k, v, gate), of_rows * signal - (1 - of_rows) * noise, [q, k, v, gate])


if __name__ == "__main__":
    main()
