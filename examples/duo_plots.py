"""The plots of duo_lm.py: gates by layer and head, and what a cache costs by context length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)


def plot_gates(alpha: Tensor, path: Path) -> None:
    layers, heads = alpha.shape
    figure, axes = plt.subplots(figsize=(1.2 * heads + 2, 0.8 * layers + 1), layout="constrained")
    image = axes.imshow(alpha.tolist(), cmap="coolwarm", vmin=0, vmax=1, aspect="auto")
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
    """Left the bytes of the caches, right the time per token. Dashed is the time by the
    share of bytes, between that of all streaming and that of full."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, color in zip(sizes, ("C0", "C1", "C2", "C3"), strict=True):
        left.plot(lengths, [n / 2**20 for n in sizes[name]], "o-", color=color, label=name)
        right.plot(lengths, times[name], "o-", color=color, label=name)
        if name not in ("full", "all streaming"):
            right.plot(lengths, list(bounds(sizes, times, name)), "--", color=color, linewidth=1)
    left.set(ylabel="caches, MiB", title="rings of sinks and window for heads that stream")
    right.set(ylabel="ms of one thread per token", title="decoding; dashed: by the share of bytes")
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


def bounds(
    sizes: dict[str, list[int]], times: dict[str, list[float]], name: str
) -> Iterator[float]:
    """All streaming's time, and of full's further time the share of its further bytes."""
    columns = (d[k] for k in (name, "full", "all streaming") for d in (sizes, times))
    for size, _, full_size, full_time, least_size, least_time in zip(*columns, strict=True):
        share = (size - least_size) / (full_size - least_size)
        yield least_time + share * (full_time - least_time)
