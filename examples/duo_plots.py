"""The plots of duo_lm.py: gates by layer and head, and what a cache costs by context length."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)


def plot_gates(alpha: Tensor, path: Path) -> None:
    layers, heads = alpha.shape
    figure, axes = plt.subplots(figsize=(1.2 * heads + 2, 0.8 * layers + 1), layout="constrained")
    image = axes.imshow(alpha.tolist(), cmap="coolwarm", vmin=0, vmax=1)
    for layer in range(layers):
        for head in range(heads):
            axes.text(head, layer, f"{alpha[layer, head]:.2f}", ha="center", va="center")
    axes.set(xlabel="KV head", ylabel="layer", xticks=range(heads), yticks=range(layers))
    figure.colorbar(image, label="gate α: 1 needs the whole context")
    figure.savefig(path)
    plt.close(figure)


def plot_cache(
    lengths: list[int], sizes: dict[str, list[int]], times: dict[str, list[float]], path: Path
) -> None:
    """Left the bytes that need to be kept, right the time per token, with that of full times the
    share of bytes as a dashed bound."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, color in zip(sizes, ("C0", "C1", "C2", "C3"), strict=True):
        left.plot(lengths, [n / 2**20 for n in sizes[name]], "o-", color=color, label=name)
        right.plot(lengths, times[name], "o-", color=color, label=name)
        if name != "full":
            shares = [a / b for a, b in zip(sizes[name], sizes["full"], strict=True)]
            bound = [share * ms for share, ms in zip(shares, times["full"], strict=True)]
            right.plot(lengths, bound, "--", color=color, linewidth=1)
    left.set(ylabel="cache that is needed, MiB", title="sinks and window of a streaming head")
    right.set(ylabel="ms per token", title="decoding; dashed: full's time × share of bytes")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
        axes.minorticks_off()
        axes.set_xlabel("context, tokens")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)
    plt.close(figure)
