"""The plot of noise.py: losses, attention on answer and noise, retrieval, and rounded logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a screen)
from matplotlib.axes import Axes  # noqa: E402

Results = dict[str, dict[str, Any]]  # by model, what noise.py measured of it


def plot_noise(results: Results, path: Path) -> None:
    figure, panels = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    draw_losses(panels[0, 0], results)
    draw_mass(panels[0, 1], results, "before")
    draw_mass(panels[0, 2], results, "after")
    draw_retrieval(panels[1, 0], results)
    draw_rounded(panels[1, 1], results)
    draw_activations(panels[1, 2], results)
    figure.savefig(path)
    plt.close(figure)


def draw_losses(axes: Axes, results: Results) -> None:
    for kind, result in results.items():
        answers = [loss for loss, _ in result["losses"]]
        smooth = [
            sum(answers[max(0, i - 25) : i + 1]) / min(i + 1, 26) for i in range(len(answers))
        ]
        axes.plot(smooth, label=kind)
    axes.set(xlabel="step", ylabel="nats per symbol of an answer", title="training")
    axes.legend()
    axes.grid(alpha=0.3)


def draw_mass(axes: Axes, results: Results, when: str) -> None:
    """Of each kind of map the head that puts most on the answer."""
    masses = {name: m for result in results.values() for name, m in result[when].items()}
    place = range(len(masses))
    axes.bar([i - 0.2 for i in place], [m.answer for m in masses.values()], 0.4, label="answer")
    axes.bar([i + 0.2 for i in place], [m.noise for m in masses.values()], 0.4, label="noise")
    axes.set_xticks(place, list(masses))
    axes.set(ylabel="attention", title=f"{when} training, the best head", ylim=(0, 1))
    axes.legend()


def draw_retrieval(axes: Axes, results: Results) -> None:
    for style, (kind, result) in zip(("--", "-"), results.items(), strict=True):
        for keys, cells in enumerate(result["retrieval"], 1):
            label = f"{kind}, {keys} key{'s' * (keys > 1)}"
            axes.plot(range(5), cells[:5], style, color=f"C{keys}", marker="o", label=label)
    axes.set_xticks(range(5), ["0–.2", ".2–.4", ".4–.6", ".6–.8", ".8–1"])
    axes.set(xlabel="depth of the key in the text", ylabel="exact match", ylim=(-0.03, 1.03))
    axes.legend(fontsize="x-small", ncols=2)
    axes.grid(alpha=0.3)


def draw_rounded(axes: Axes, results: Results) -> None:
    for i, (kind, result) in enumerate(results.items()):
        for keys, style in (("1 key", "o-"), ("3 keys", "o--")):
            cells = {n.split(", ")[1]: x for n, x in result["rounded"].items() if keys in n}
            axes.plot(
                list(cells), list(cells.values()), style, color=f"C{i}", label=f"{kind}, {keys}"
            )
    axes.set(ylabel="exact match", title="attention logits rounded", ylim=(-0.03, 1.03))
    axes.legend()
    axes.grid(alpha=0.3)


def draw_activations(axes: Axes, results: Results) -> None:
    width = 0.8 / len(results)
    for i, (kind, result) in enumerate(results.items()):
        names = list(result["activations"])
        axes.bar([j + i * width for j in range(len(names))], list(result["activations"].values()),
                 width, label=kind)  # fmt: skip
        axes.set_xticks([j + width / 2 for j in range(len(names))], names)
    axes.set_yscale("log")
    axes.set_title("activations")
    axes.legend()
