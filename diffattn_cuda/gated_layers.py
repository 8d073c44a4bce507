"""What gates, probes and patterns of heads need of a model: its differential layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import module_arguments
from .module_base import IMPLEMENTATIONS, DiffAttnBase


def differential_layers(model: nn.Module) -> tuple[list[DiffAttnBase], int]:
    """In the model's order, and how many KV heads each has."""
    layers = [module for module in model.modules() if isinstance(module, DiffAttnBase)]
    if not layers:
        raise ValueError(
            f"model is {type(model).__name__}, without differential layers; accepted: a module "
            "that holds nn.MultiheadDiffAttn or nn.MultiheadDiffAttnV2"
        )
    counts = sorted({layer.num_kv_heads for layer in layers})
    if len(counts) > 1:
        raise ValueError(f"model has layers of {counts} KV heads, accepted: one number in all")
    if not all(layer.causal for layer in layers):
        raise ValueError("model has a layer with causal=False, accepted: causal layers")
    return layers, counts[0]


def refuse_gates(layers: list[DiffAttnBase]) -> None:
    if any(layer.attention_override is not None for layer in layers):
        raise ValueError(
            "model has gates already, accepted: one without; call their remove() first"
        )


def streaming_mask(sink: int, recent: int) -> dict[str, Any]:
    """Of a head that streams, as the functions take it: recent counts a row's own key."""
    sink, recent = module_arguments.integers(sink=sink, recent=recent)
    if sink < 0 or recent < 1:
        raise ValueError(f"sink is {sink} and recent is {recent}, accepted: sink >= 0, recent >= 1")
    return {"window_size": (recent - 1, 0), "sink_size": sink}


class Override:
    """Takes the place of a layer's implementation, as its attention_override."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.diff_flash_attn_func = function

    def diff_flash_attn_with_kvcache(self, *_: Any, **__: Any) -> Tensor:
        raise ValueError("cache was given to a layer with gates: call their remove() first")


def attend(layer: DiffAttnBase, tensors: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """As the layer does without an override."""
    out: Tensor = IMPLEMENTATIONS[layer.implementation].diff_flash_attn_func(*tensors, **options)
    return out
