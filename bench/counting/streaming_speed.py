"""Predicts what streaming heads save on a GPU: docs/streaming_speed.md has its tables and its plot.

    python bench/counting/streaming_speed.py

Next to what DuoAttention measured (arXiv 2410.10819). The kernels' share follows from the model of
docs/predictions.md; nothing here was measured.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "bench")]

import matplotlib  # noqa: E402

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from counting import streaming  # noqa: E402
from counting.model import (  # noqa: E402
    A100,
    BEST,
    DEVICES,
    H100,
    LAUNCH_GAP,
    WORST,
    Device,
    fixed,
)
from counting.streaming import SEEN  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from page import rewrite, table  # noqa: E402

PAGE = ROOT / "docs" / "streaming_speed.md"
IN_FLIGHT = {64: 48 << 10, 128: 64 << 10}  # bytes per CTA, by d (docs/kernels_decode.md)
DELAY = 800e-9  # seconds from asking memory for bytes until they arrive
LEAST_KEYS = 512  # of a split
PEAK, GEMM = 312e12, 0.75  # an A100's bf16 flop per second, and the share that large GEMMs reach


@dataclass(frozen=True)
class Attention:
    """One layer of differential attention, bf16, batch 1."""

    pairs: int  # KV heads: K1, K2 of width d, and V of 2d
    d: int

    @property
    def key_bytes(self) -> int:
        return 8 * self.d  # of one KV head

    def step(self, device: Device, seqlen: int, full: float) -> float:
        """Seconds of a decoding step: a share of the KV heads is full, the others stream."""
        return self.call(device, seqlen, full * self.pairs, (1 - full) * self.pairs)

    def two_calls(self, device: Device, seqlen: int, full: float) -> float:
        """The same in a call for each kind of heads, and a cat, which is not charged its bytes."""
        calls = ((full * self.pairs, 0), (0, (1 - full) * self.pairs))
        return sum(self.call(device, seqlen, *heads) for heads in calls) + 2 * LAUNCH_GAP

    def call(self, device: Device, seqlen: int, full: float, streaming: float) -> float:
        """Seconds, by the KV heads of each kind. Streaming heads alone are not split."""
        keys = full * seqlen + streaming * min(SEEN, seqlen)
        ctas = full * math.ceil(seqlen / LEAST_KEYS) + streaming
        rate = min(device.bandwidth, min(ctas, device.sms) * IN_FLIGHT[self.d] / DELAY)
        rest = sum(fixed(device, full > 0, chains) for chains in (BEST, WORST)) / 2
        return keys * self.key_bytes / rate + rest


@dataclass(frozen=True)
class Measured:
    """A model of DuoAttention's, and what it measured on an A100, whole and in eager PyTorch."""

    name: str
    full: float  # share of heads
    attention: Attention  # of as many bytes per token, in differential heads
    query_pairs: int
    weights: float  # parameters
    times: dict[int, float]  # by tokens of context, how many times faster a step is
    longest: tuple[float, float]  # at the last of these: milliseconds, full and streaming
    prefill: tuple[int, float]  # tokens, and how many times faster, in its best chunks
    layers: int = 32

    def step(self, device: Device, seqlen: int, full: float) -> float:
        """Seconds, if all other than attention took no longer than reading the weights."""
        one = self.attention.step(device, seqlen, full)
        return self.layers * one + 2 * self.weights / device.bandwidth

    def prefill_seconds(self, seqlen: int, full: float) -> float:
        """On an A100: attention at its predicted speed, products with weights at GEMM of PEAK."""
        pairs = full * seqlen**2 / 2 + (1 - full) * seqlen * SEEN * forward_tiles()
        flop = self.layers * self.query_pairs * 12 * self.attention.d * pairs
        return flop / forward_speed() + 2 * self.weights * seqlen / (GEMM * PEAK)


MEASURED = (
    Measured("Llama-2-7B", 0.25, Attention(16, 128), 16, 6.74e9,
             {20_000: 1.1, 60_000: 1.7, 100_000: 2.0, 134_000: 2.18}, (55, 25), (100_000, 1.73)),
    Measured("Llama-3-8B", 0.5, Attention(4, 128), 16, 8.03e9,
             {100_000: 1.1, 300_000: 1.4, 517_000: 1.50}, (55, 36.7), (320_000, 1.63)),
)  # fmt: skip
LAYER = Attention(8, 64)
SEQLENS = [2**11, 2**12, 2**13, 2**15, 2**17, 2**20]
SHARES = (0.5, 0.25)


def forward_tiles() -> float:
    """Visited pairs over visible ones, counted."""
    (found,) = (r.value for r in streaming.read()
                if r.heads == "all stream" and r.what.startswith("forward: pairs"))  # fmt: skip
    return found


def forward_speed() -> float:
    """Flop per second of the forward on an A100, d = 128, as docs/predictions.md predicts it."""
    page = (ROOT / "docs" / "predictions.md").read_text()
    row = re.search(r"^\| fwd \| A100 \| 128 \| 16384 \| (\S+) \|", page, re.MULTILINE)
    assert row is not None
    return float(row[1]) * 1e12


def bound(seqlen: int, full: float) -> float:
    """Keys that full heads see, over those that this mix sees."""
    return seqlen / (full * seqlen + (1 - full) * min(SEEN, seqlen))


def text_of(seqlen: int) -> str:
    return f"{seqlen >> 20}M" if seqlen >= 1 << 20 else f"{seqlen >> 10}K"


def layer_table() -> str:
    lines = []
    for full in SHARES:
        for seqlen in SEQLENS:
            row = [f"{full:g}", text_of(seqlen), f"{bound(seqlen, full):.2f}"]
            for device in DEVICES:
                all_full, mixed = (1e6 * LAYER.step(device, seqlen, x) for x in (1, full))
                apart = 1e6 * LAYER.two_calls(device, seqlen, full)
                row += [f"{all_full:.1f} → {mixed:.1f}", f"{all_full / mixed:.2f}"]
                row.append(f"{apart / mixed:.2f}")
            lines.append(row)
    header = ["predicted, one layer's step; share of full heads", "keys", "bound ×", "A100, µs",
              "×", "× two calls", "H100, µs", "×", "× two calls"]  # fmt: skip
    return table(header, lines)


def model_table() -> str:
    lines = []
    for m in MEASURED:
        for seqlen, measured in m.times.items():
            row = [f"{m.name}, {m.full:g}", f"{seqlen // 1000}K", f"{bound(seqlen, m.full):.2f}"]
            for device in DEVICES:
                all_full, mixed = (1e3 * m.step(device, seqlen, x) for x in (1, m.full))
                row += [f"{all_full:.1f} → {mixed:.1f}", f"{all_full / mixed:.2f}"]
            last = seqlen == list(m.times)[-1]
            lines.append([*row, f"**{measured:.2f}**" if last else f"{measured:g}"])
    header = ["predicted, a whole step at best; share of full heads", "keys",
              "bound of attention ×", "A100, ms", "×", "H100, ms", "×",
              "DuoAttention, A100, measured ×"]  # fmt: skip
    return table(header, lines)


def prefill_table() -> str:
    lines = []
    for m in MEASURED:
        seqlen, measured = m.prefill
        all_full, mixed = (m.prefill_seconds(seqlen, x) for x in (1, m.full))
        lines.append([f"{m.name}, {m.full:g}", f"{seqlen // 1000}K",
                      f"{all_full:.0f} → {mixed:.0f}", f"{all_full / mixed:.2f}",
                      f"{measured:.2f}"])  # fmt: skip
    header = ["predicted, prefill at any chunk; share of full heads", "tokens", "A100, s", "×",
              "DuoAttention, A100, best chunk, measured ×"]  # fmt: skip
    return table(header, lines)


def counted_table() -> str:
    lines = [[r.what, r.heads, r.problem, f"{r.value:.4g}", r.limit] for r in streaming.read()]
    return table(["counted", "heads", "problem", "figure", "goal"], lines)


def texts() -> dict[str, str]:
    """The page's tables."""
    return {"streaming counted": counted_table(), "streaming layer": layer_table(),
            "streaming model": model_table(), "streaming prefill": prefill_table()}  # fmt: skip


def draw(path: Path) -> None:
    plt.rcParams.update({"svg.hashsalt": "diffattn", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw_layer(left)
    draw_models(right)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        ticks = [2**n for n in range(13, 21)]
        axes.set_xticks(ticks, [text_of(n) for n in ticks])
        axes.minorticks_off()
        axes.set(xlabel="keys", ylim=(0.9, 4.2))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def points() -> list[int]:
    return [round(2 ** (13 + n / 8)) for n in range(57)]


def draw_layer(axes: Axes) -> None:
    for full, color in zip(SHARES, ("C0", "C1"), strict=True):
        axes.plot(points(), [bound(n, full) for n in points()], ":", color=color,
                  label=f"{full:g} full: bound, by bytes")  # fmt: skip
        for device, line in ((A100, "-"), (H100, "--")):
            times = [LAYER.step(device, n, 1) / LAYER.step(device, n, full) for n in points()]
            axes.plot(points(), times, line, color=color, label=f"{full:g} full: {device.name}")
    axes.set(ylabel="times faster", title="one layer's step, predicted (8 KV heads, d = 64)")


def draw_models(axes: Axes) -> None:
    for m, color in zip(MEASURED, ("C1", "C0"), strict=True):
        of = f"{m.name}, {m.full:g} full"
        axes.plot(points(), [bound(n, m.full) for n in points()], ":", color=color)
        times = [m.step(A100, n, 1) / m.step(A100, n, m.full) for n in points()]
        axes.plot(points(), times, "-", color=color, label=f"{of}: predicted at best")
        axes.plot(list(m.times), list(m.times.values()), "o", color=color,
                  label=f"{of}: DuoAttention, measured")  # fmt: skip
    axes.set(title="a whole step on an A100; dotted: bound of attention alone")


def main() -> None:
    for name, text in texts().items():
        rewrite(PAGE, name, text)
    draw(ROOT / "docs" / "streaming_speed.svg")


if __name__ == "__main__":
    main()
