"""Motif-2's example against its formula, head by head, from the checkpoint's names."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

EXAMPLE = Path(__file__).parents[1] / "examples" / "motif2.py"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def motif() -> Any:
    return runpy.run_path(str(EXAMPLE))


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def turned(x: Tensor, theta: float) -> Tensor:
    """x (b, s, d): feature i and i + d/2 turn by place·theta^(−2i/d)."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[1]).float(), theta ** -(torch.arange(half) / half))
    cos, sin = angle.cos().double(), angle.sin().double()  # fp32 as the example's
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def softmax_map(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def attention(x: Tensor, w: Weights, c: Any, depth: int) -> Tensor:
    """Signal head 5g + i, noise head 5g + 4; K of signals 2h, of noise 2h + 1; group g reads h."""
    d, r = c.head_dim, c.num_attention_heads // c.num_noise_heads - 1
    share = c.num_noise_heads // (c.num_key_value_heads // 2)
    q, k, v = ((x @ w[f"{name}_proj.weight"].T).split(d, -1) for name in "qkv")
    lambda_init = 0.8 - 0.6 * math.exp(-0.3 * (depth - 1))
    e1, e2 = ((w[f"lambda_q{n}"] @ w[f"lambda_k{n}"]).exp() for n in (1, 2))
    lam = e1 - e2 + lambda_init
    heads = []
    for g in range(c.num_noise_heads):
        h = g // share
        k1, k2 = turned(k[2 * h], c.rope_theta), turned(k[2 * h + 1], c.rope_theta)
        value = torch.cat((v[2 * h], v[2 * h + 1]), -1)
        noise = softmax_map(turned(q[(r + 1) * g + r], c.rope_theta), k2) @ value
        for i in range(r):
            signal = softmax_map(turned(q[(r + 1) * g + i], c.rope_theta), k1) @ value
            normed = rms(signal - lam * noise, c.attn_rms_norm_eps) * w["subln.weight"]
            heads.append(normed * (1 - lambda_init))
    return torch.cat(heads, -1) @ w["o_proj.weight"].T


def mlp(x: Tensor, w: Weights) -> Tensor:
    gate = x @ w["gate_proj.weight"].T
    w3, w2, w1 = w["act_fn.weight"]
    act = w3 * rms(gate**3, 1e-6) + w2 * rms(gate**2, 1e-6) + w1 * rms(gate, 1e-6)
    return ((act + w["act_fn.bias"]) * (x @ w["up_proj.weight"].T)) @ w["down_proj.weight"].T


def part(w: Weights, prefix: str) -> Weights:
    return {n.removeprefix(prefix): t for n, t in w.items() if n.startswith(prefix)}


def formula(tokens: Tensor, w: Weights, c: Any) -> Tensor:
    x = w["model.embed_tokens.weight"][tokens]
    for depth in range(c.num_hidden_layers):
        own = part(w, f"model.layers.{depth}.")
        y = rms(x, c.rms_norm_eps) * own["input_layernorm.weight"]
        x = x + attention(y, part(own, "self_attn."), c, depth)
        y = rms(x, c.rms_norm_eps) * own["post_attention_layernorm.weight"]
        x = x + mlp(y, part(own, "mlp."))
    return rms(x, c.rms_norm_eps) * w["model.norm.weight"] @ w["lm_head.weight"].T


def make(motif: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = motif["Motif"](motif["Config"](**changes)).double()
    for p in model.parameters():  # also norms and λ's vectors, which begin as ones or small
        p.data += 0.2 * torch.randn_like(p)
    return model


# Of the last, groups share KV heads, and r is 2.
CONFIGS: list[dict[str, int]] = [
    {}, {"num_attention_heads": 12, "num_noise_heads": 4, "num_key_value_heads": 4},
]  # fmt: skip


@pytest.mark.parametrize("changes", CONFIGS, ids=["4:1", "2:1"])
def test_logits_and_gradients_are_the_formulas(motif: Any, changes: dict[str, int]) -> None:
    model, tokens = make(motif, **changes), torch.randint(100, (2, 23))
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    got, want = model(tokens), formula(tokens, weights, model.config)
    assert (got - want).norm() < 1e-10 * want.norm()
    cotangent = torch.randn_like(want)
    actual = torch.autograd.grad(got, list(model.parameters()), cotangent)
    expected = torch.autograd.grad(want, list(weights.values()), cotangent)
    for name, a, e in zip(weights, actual, expected, strict=True):
        assert 0 < e.norm() and (a - e).norm() < 1e-9 * e.norm(), name


@torch.no_grad()
def test_the_cache_gives_the_formulas_logits(motif: Any) -> None:
    model, tokens = make(motif), torch.randint(100, (2, 20))
    want = formula(tokens, dict(model.named_parameters()), model.config)
    caches = model.make_caches(2, 24)
    got = torch.cat([model(some, caches) for some in tokens.split([11, 1, 5, 3], dim=1)], 1)
    assert (got - want).norm() < 1e-10 * want.norm()


def test_names_and_shapes_of_the_checkpoint(motif: Any) -> None:
    """Of Motif-2-12.7B, with a hidden size of 64 for 4096 and d = 16 for 128."""
    model = make(motif, num_attention_heads=40, num_noise_heads=8, num_key_value_heads=16)
    own = part(dict(model.named_parameters()), "model.layers.2.self_attn.")
    assert {n: tuple(p.shape) for n, p in own.items()} == {
        "q_proj.weight": (40 * 16, 64), "k_proj.weight": (16 * 16, 64),
        "v_proj.weight": (16 * 16, 64), "o_proj.weight": (64, 32 * 2 * 16),
        "lambda_q1": (16,), "lambda_k1": (16,), "lambda_q2": (16,), "lambda_k2": (16,),
        "subln.weight": (32,),
    }  # fmt: skip
