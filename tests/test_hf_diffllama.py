"""transformers' DiffLlama with the fused attention of examples/hf_diffllama.py, under the law.

The oracle is DiffLlama's own eager attention with fp64 weights (its softmax and λ stay fp32); the
emulations are its eager and SDPA attention in the dtype under test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.impls import HALF
from support.law import FORWARD, GRADIENT, Verdict, emulated_squares, enforce, judge
from support.threads import threads
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")
ORDER = ("fused", "exact", "eager", "sdpa")
EXAMPLES = Path(__file__).parents[1] / "examples"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Registered, on one thread: at these sizes a second one waits more than it works."""
    sys.path.insert(0, str(EXAMPLES))
    import hf_diffllama

    hf_diffllama.register()
    with threads(1):
        yield hf_diffllama
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module", params=DTYPES)
def models(request: pytest.FixtureRequest, example: Any) -> dict[str, Any]:
    """The same rounded weights: exact (fp64); eager, sdpa and fused in the dtype."""
    from transformers import DiffLlamaForCausalLM

    torch.manual_seed(1)
    dtype, config = DTYPES[request.param], example.small_config(num_hidden_layers=2)
    start = DiffLlamaForCausalLM(config).to(dtype)
    found = {}
    ways = {"exact": "eager", "eager": "eager", "sdpa": "sdpa", "fused": "diffattn"}
    for name, way in ways.items():
        # from_pretrained makes the registered modules, the class itself does not.
        model = DiffLlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=start.state_dict(),
            attn_implementation=way,
        )  # fmt: skip
        found[name] = model.to(torch.float64 if name == "exact" else dtype)
    return found


def verdict(name: str, factor: float, got: Tensor, exact: Tensor, *emulated: Tensor) -> Verdict:
    """Rows along the last dimension; their emulation is pooled over the first."""
    shared = (0,) if exact.dim() > 1 else ()
    squares = emulated_squares(exact, list(emulated), shared, got.dtype not in HALF)
    return judge(name, got, exact, squares, exact.norm(dim=-1), factor)


def logits(models: dict[str, Any], tokens: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Of every model, in the order of ORDER."""
    with torch.no_grad():
        return tuple(models[name](tokens, **options).logits for name in ORDER)


def test_prefill(models: dict[str, Any]) -> None:
    tokens = torch.randint(500, (2, 70))
    enforce(verdict("logits", FORWARD, *logits(models, tokens)))


def test_a_prompt_padded_on_the_left(models: dict[str, Any]) -> None:
    """The oracle sees prompts alone: in fp64 DiffLlama's eager attention makes NaN of padding."""
    tokens, mask = torch.randint(500, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[1, :13] = 0
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        got = models["fused"](tokens, attention_mask=mask, position_ids=position_ids).logits
    for row, start in (0, 0), (1, 13):
        alone = logits(models, tokens[row : row + 1, start:])[1:]
        enforce(verdict("logits", FORWARD, got[row : row + 1, start:], *alone))


@pytest.mark.parametrize("cache", ["DynamicCache", "StaticCache"])
def test_decoding(models: dict[str, Any], cache: str) -> None:
    """A prompt, a chunk and single tokens through transformers' cache; the oracle has none."""
    import transformers

    tokens = torch.randint(500, (2, 30))
    _, *others = logits(models, tokens)
    fused = models["fused"]
    room = {"max_cache_len": 40} if cache == "StaticCache" else {}
    past = getattr(transformers, cache)(config=fused.config, **room)
    with torch.no_grad():
        chunks = tokens.split([17, 9, 1, 3], dim=1)
        parts = [fused(chunk, past_key_values=past).logits for chunk in chunks]
    enforce(verdict("logits", FORWARD, torch.cat(parts, 1), *others))


def test_training_step(models: dict[str, Any]) -> None:
    tokens = torch.randint(500, (2, 50))
    for model in models.values():
        model(tokens, labels=tokens).loss.backward()
    named = [dict(models[name].named_parameters()) for name in ORDER]
    for name in named[0]:
        enforce(verdict(f"d{name}", GRADIENT, *(p[name].grad for p in named)))


def test_another_pairing_breaks_the_law(
    example: Any, models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """unilm's heads, components side by side: right for V1 checkpoints, wrong for DiffLlama's."""
    monkeypatch.setattr(example, "pairs", lambda x: x.unflatten(2, (-1, 2)))
    tokens = torch.randint(500, (2, 70))
    assert verdict("logits", FORWARD, *logits(models, tokens)).ratio > 10
