"""The plots of train_lm.py: the loss, and one row of both attention maps with their difference."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from diff_lm import DiffLM
from torch import Tensor

from diffattn_cuda.reference import apply_rotary, attention_maps

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)


def plot_loss(losses: list[float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats a byte)", title="DIFF Transformer, Python sources")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def plot_attention(model: DiffLM, text: str, path: Path, head: int = 0) -> None:
    """What the last byte of text attends to in one head of the last block."""
    tokens = torch.tensor([list(text.encode())], device=model.cos.device)
    p1, p2, lam = attention_row(model, tokens, head)
    rows = [("P1", p1), (f"λ·P2, λ = {lam:.2f}", lam * p2), ("P1 − λ·P2", p1 - lam * p2)]
    figure, panels = plt.subplots(
        3, 1, figsize=(12, 5), sharex=True, sharey=True, layout="constrained"
    )
    for axes, (label, row) in zip(panels, rows, strict=True):
        axes.bar(range(len(row)), row.tolist())
        axes.axhline(0, color="black", linewidth=0.5)
        axes.set_ylabel(label)
    letters = text.replace("\n", "↵").replace(" ", "·")
    panels[-1].set_xticks(range(len(letters)), list(letters), family="monospace")
    figure.suptitle(f"what the last byte attends to: last block, head {head}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def attention_row(model: DiffLM, tokens: Tensor, head: int) -> tuple[Tensor, Tensor, float]:
    """The last query's row (seqlen,) of P1 and of P2, and λ.  The kernels never store the maps, so
    they are computed here from what enters the last block's attention."""
    attn = model.attention_layers()[-1]
    seen: list[Tensor] = []
    hook = attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(tokens)
    hook.remove()
    x, seqlen = seen[0], tokens.shape[1]
    group = attn.num_heads // attn.num_kv_heads
    q = attn.q_proj(x).view(1, seqlen, attn.num_heads, 2, attn.head_dim)
    k = attn.k_proj(x).view(1, seqlen, attn.num_kv_heads, 2, attn.head_dim)
    q, k = (apply_rotary(t, model.cos[:seqlen], model.sin[:seqlen]) for t in (q, k))
    q, k = q[:, :, head : head + 1], k[:, :, head // group : head // group + 1]
    p, _ = attention_maps(q, k, causal=True)  # (2, 1, 1, seqlen, seqlen)
    return p[0, 0, 0, -1].cpu(), p[1, 0, 0, -1].cpu(), attn.lambda_full().item()
