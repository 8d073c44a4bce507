"""Small DiffLlamas of equal weights under several attention implementations."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 500


def config(**changes: Any) -> Any:
    """4 heads of 2 components over 2 KV heads, d = 16."""
    from transformers import DiffLlamaConfig

    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
        "initializer_range": 0.1, "eos_token_id": None,
    }  # fmt: skip
    return DiffLlamaConfig(**(sizes | changes))


def twins(*ways: str, seed: int = 1, **changes: Any) -> tuple[Any, ...]:
    """A model for each attn_implementation, all with the weights of the first."""
    from transformers import DiffLlamaForCausalLM

    from diffattn_cuda import hf

    hf.register()
    torch.manual_seed(seed)
    made = [DiffLlamaForCausalLM(config(**changes)).eval() for _ in ways]
    for way, model in zip(ways, made, strict=True):
        model.load_state_dict(made[0].state_dict())
        model.set_attn_implementation(way)
    return tuple(made)


def cache_for(model: Any, kind: str) -> dict[str, Any]:
    """An empty transformers.{kind}, as the argument that the model takes it by in this version."""
    import transformers

    room = {"max_cache_len": 32} if kind == "StaticCache" else {}
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: getattr(transformers, kind)(config=model.config, **room)}


def tokens(batch: int, seqlen: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, seqlen))


def worst_row(got: Tensor, want: Tensor) -> float:
    """The greatest relative L2 error of a row (last dimension)."""
    assert got.shape == want.shape
    error, size = (got - want).double().norm(dim=-1), want.double().norm(dim=-1)
    return (error / size).max().item()
