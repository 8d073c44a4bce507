"""A checkpoint of microsoft/unilm's Diff-Transformer (V1) in the fused module: names and all.

The checkpoint made here has the names, shapes and dtypes of one that unilm's modules save; the
formula it is compared with is that of their `multihead_flashdiff_2`, its roundings included.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diffattn_cuda.nn import MultiheadDiffAttn, lambda_init_fn, rotary_tables

EMBED, HEADS, KV_HEADS, LAYERS = 256, 4, 2, 3  # HEADS as unilm counts them: outputs, 2·HEADS maps
D = EMBED // HEADS // 2
PREFIX = "layers.{}.self_attn."  # wherever the model around it keeps its attention


def make_checkpoint(path: Path) -> None:
    """Random weights; λ's vectors and the norm's weight are always fp32 there."""
    group = HEADS // KV_HEADS
    state = {}
    for layer in range(LAYERS):
        name = PREFIX.format(layer)
        for projection, width in {"q": EMBED, "k": EMBED // group, "v": EMBED // group,
                                  "out": EMBED}.items():  # fmt: skip
            weight = torch.randn(width, EMBED) * EMBED**-0.5
            state[f"{name}{projection}_proj.weight"] = weight
        for vector in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            state[name + vector] = 0.1 * torch.randn(D)
        state[f"{name}subln.weight"] = 1 + 0.1 * torch.randn(2 * D)
    torch.save({"model": state}, path)


def load_attention(path: Path, layer: int) -> MultiheadDiffAttn:
    """The module of one layer; strict loading, so a name that is missing or left over raises."""
    state, prefix = torch.load(path, weights_only=True)["model"], PREFIX.format(layer)
    mine = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    attention = MultiheadDiffAttn(EMBED, layer, HEADS, KV_HEADS)
    attention.load_state_dict(mine)
    return attention


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Interleaved rotary embedding of x (batch, seqlen, heads, d)."""
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, one map: (batch, seqlen, heads, d) each, in their dtype."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def unilm_forward(x: Tensor, w: dict[str, Tensor], layer: int, rel_pos: tuple) -> Tensor:
    """What unilm computes: four attention calls, λ in x's dtype, the norm and the factor."""
    b, s, _ = x.shape
    lambda_init = lambda_init_fn(layer)
    q = rotate((x @ w["q_proj.weight"].T).view(b, s, 2 * HEADS, D), *rel_pos)
    k = rotate((x @ w["k_proj.weight"].T).view(b, s, 2 * KV_HEADS, D), *rel_pos)
    v = (x @ w["v_proj.weight"].T).view(b, s, KV_HEADS, 2, D)
    q, k = q.view(b, s, HEADS, 2, D), k.view(b, s, KV_HEADS, 2, D)
    o1, o2 = (
        torch.cat([attend(q[..., c, :], k[..., c, :], v[..., half, :]) for half in (0, 1)], -1)
        for c in (0, 1)
    )  # (b, s, HEADS, 2·D)
    e1, e2 = (
        (w[f"lambda_q{c}"] * w[f"lambda_k{c}"]).sum().float().exp().to(x.dtype) for c in (1, 2)
    )
    o = o1 - (e1 - e2 + lambda_init) * o2
    normed = o.float() * torch.rsqrt(o.float().square().mean(-1, keepdim=True) + 1e-5)
    y = normed.to(x.dtype) * w["subln.weight"] * (1 - lambda_init)
    return y.flatten(2) @ w["out_proj.weight"].T


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint_last.pt"
        make_checkpoint(path)
        layers = [load_attention(path, layer) for layer in range(LAYERS)]

    x, rel_pos = torch.randn(2, 150, EMBED), rotary_tables(150, D)
    for layer, attention in enumerate(layers):
        got = attention(x, rel_pos)
        want = unilm_forward(x, attention.state_dict(), layer, rel_pos)
        difference = ((got - want).norm() / want.norm()).item()
        assert difference < 1e-5, difference
        print(f"layer {layer}: λ = {attention.lambda_full():.4f}, fused and unilm's formula "
              f"agree within {difference:.1e}")  # fmt: skip

    # unilm rounds λ's exponentials to bf16 under autocast; lambda_dtype gives its numbers.
    as_trained = MultiheadDiffAttn(EMBED, 0, HEADS, KV_HEADS, lambda_dtype=torch.bfloat16)
    as_trained.load_state_dict(layers[0].state_dict())
    print(f"layer 0: λ = {as_trained.lambda_full():.4f} with unilm's rounding in bf16")


if __name__ == "__main__":
    main()
