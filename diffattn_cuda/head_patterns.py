"""Which heads of a model keep the whole context: chosen, stored and set (arXiv 2410.10819).

A pattern is (layers, nheads_k), one entry per KV head. `duo` has the gates that it comes from, and
these names too.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .gated_layers import differential_layers, refuse_gates, streaming_mask

_TSV, _CONFIG = "full_attention_heads.tsv", "config.json"  # DuoAttention's names


def select_heads(gates: Tensor, keep: float = 0.5) -> Tensor:
    """The heads that keep the whole context: those with the largest gates, over all layers.

    Args:
        gates: (layers, nheads_k), α or `attention_scores`.
        keep: their share, 0 to 1; the number is rounded to the nearest. Of equal gates the one of
            the lower layer, then of the lower head, is kept.

    Returns:
        bool (layers, nheads_k) on the CPU.

    Raises:
        ValueError: gates has another rank or a NaN, or keep is outside 0 to 1.

    Examples:
        >>> select_heads(torch.tensor([[0.1, 0.9], [0.9, 0.9]]), keep=0.5)
        tensor([[False,  True],
                [ True, False]])
    """
    if gates.dim() != 2 or gates.isnan().any():
        raise ValueError(f"gates is {tuple(gates.shape)}, accepted: (layers, nheads_k) without NaN")
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep!r}, accepted: a share from 0 to 1")
    flat = gates.detach().cpu().flatten()
    count = int(keep * flat.numel() + 0.5)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.sort(descending=True, stable=True).indices[:count]] = True
    return kept.view(gates.shape)


def set_streaming_heads(model: nn.Module, pattern: Tensor, sink: int, recent: int) -> None:
    """Deploy: from now on, with and without a cache, heads that pattern does not keep stream.

    Args:
        model: as in `HeadGates`, without gates.
        pattern: bool (layers, nheads_k), True for a head that keeps the whole context.
        sink: as in `HeadGates`.
        recent: as in `HeadGates`.

    Raises:
        ValueError: pattern does not fit the model, or the model has gates.
        TypeError: pattern is no bool tensor.

    Examples:
        >>> from diffattn_cuda.nn import MultiheadDiffAttn
        >>> model = MultiheadDiffAttn(256, depth=0, num_heads=2)
        >>> set_streaming_heads(model, torch.tensor([[True, False]]), sink=4, recent=64)
        >>> model.window_size, model.sink_size, model.streaming_heads
        ((63, 0), 4, (False, True))
    """
    layers, nheads_k = differential_layers(model)
    refuse_gates(layers)
    if not isinstance(pattern, Tensor) or pattern.dtype != torch.bool:
        given = pattern.dtype if isinstance(pattern, Tensor) else type(pattern).__name__
        raise TypeError(f"pattern is {given}, accepted: torch.bool, as select_heads gives it")
    if pattern.shape != (len(layers), nheads_k):
        raise ValueError(
            f"pattern is {tuple(pattern.shape)}, accepted: the model's {(len(layers), nheads_k)}"
        )
    mask = streaming_mask(sink, recent)
    for layer, kept in zip(layers, pattern.tolist(), strict=True):
        layer.window_size, layer.sink_size = mask["window_size"], mask["sink_size"]
        layer.streaming_heads = tuple(not full for full in kept)


def load_pattern(folder: str | PathLike[str]) -> tuple[Tensor, int, int]:
    """Gates that were saved, or one of DuoAttention's published patterns.

    Args:
        folder: holds full_attention_heads.tsv, a line of numbers per layer, and config.json, with
            sink_size and recent_size.

    Returns:
        gates, fp32 (layers, nheads_k), clamped to 0 to 1 as DuoAttention does; sink; recent.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: a file holds something else; the message names it.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pattern(folder, torch.tensor([[1.0, 0.25]]), sink=128, recent=256)
        ...     load_pattern(folder)
        (tensor([[1.0000, 0.2500]]), 128, 256)
    """
    tsv, config = Path(folder) / _TSV, Path(folder) / _CONFIG
    rows: list[list[float]] = []
    for number, line in enumerate(tsv.read_text().splitlines(), 1):
        try:
            rows.append([float(cell) for cell in line.split("\t")])
        except ValueError:
            rows.append([])
        if not rows[-1] or len(rows[-1]) != len(rows[0]):
            raise ValueError(
                f"{tsv}, line {number} is {line!r}, accepted: numbers with tabs between them, as "
                "many as in line 1"
            )
    gates = torch.tensor(rows, dtype=torch.float32)
    if not rows or not gates.isfinite().all():
        raise ValueError(f"{tsv} has no line, or a number that is not finite; accepted: gates")
    try:
        said = json.loads(config.read_text())
        sink, recent = said["sink_size"], said["recent_size"]
        streaming_mask(sink, recent)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{config} is wrong in {error}, accepted: JSON with the integers sink_size and "
            "recent_size"
        ) from None
    return gates.clamp(0, 1), sink, recent


def save_pattern(
    folder: str | PathLike[str], gates: Tensor, sink: int, recent: int, **config: Any
) -> None:
    """Write gates so that `load_pattern` gives the same fp32 numbers, and DuoAttention reads them.

    Args:
        folder: made if it is not there.
        gates: (layers, nheads_k), numbers or bools.
        sink: sink_size of config.json.
        recent: its recent_size.
        config: more of it, such as how the gates were trained.

    Raises:
        ValueError: gates has another rank, or a size is out of range.

    Examples:
        See `load_pattern`.

        >>> save_pattern("x", torch.ones(3), 4, 64)
        Traceback (most recent call last):
        ValueError: gates is (3,), accepted: (layers, nheads_k)
    """
    if gates.dim() != 2:
        raise ValueError(f"gates is {tuple(gates.shape)}, accepted: (layers, nheads_k)")
    streaming_mask(sink, recent)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(f"{gate:.18e}" for gate in row) for row in gates.float().tolist()]
    (folder / _TSV).write_text("\n".join(lines) + "\n")
    said = config | {"sink_size": sink, "recent_size": recent}
    (folder / _CONFIG).write_text(json.dumps(said, indent=1) + "\n")
