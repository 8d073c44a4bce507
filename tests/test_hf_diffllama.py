"""transformers' DiffLlama with the fused attention of diffattn_cuda.hf, under the law.

The oracle is DiffLlama's own eager attention with fp64 weights (its softmax and λ stay fp32); the
emulations are its eager and SDPA attention in the dtype under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.diffllama import cache_for, twins
from support.impls import HALF
from support.law import FORWARD, GRADIENT, Verdict, emulated_squares, enforce, judge
from support.threads import threads
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")
ORDER = ("fused", "exact", "eager", "sdpa")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(scope="module", params=DTYPES)
def models(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The same rounded weights: exact (fp64); eager, sdpa and fused in the dtype.

    On one thread: at these sizes a second one waits more than it works.
    """
    dtype = DTYPES[request.param]
    ways = {"exact": "eager", "eager": "eager", "sdpa": "sdpa", "fused": "diffattn"}
    found = dict(zip(ways, twins(*ways.values()), strict=True))
    for name, model in found.items():
        model.to(dtype).to(torch.float64 if name == "exact" else dtype)
    with threads(1):
        yield found


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


def test_a_hole(models: dict[str, Any]) -> None:
    """Rows of visible tokens; sequence 1 is padded on the right as well."""
    tokens, mask = torch.randint(500, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[:, 11:17], mask[1, 33:] = 0, 0
    got, *others = logits(models, tokens, attention_mask=mask)
    for row, visible in enumerate(mask.bool()):
        seen = (x[row : row + 1, visible] for x in (got, *others))
        enforce(verdict("logits", FORWARD, *seen))


def test_packed_documents(models: dict[str, Any]) -> None:
    lengths = torch.tensor([[17, 23], [31, 9]])
    tokens = torch.randint(500, (2, 40))
    position_ids = torch.stack([torch.cat([*map(torch.arange, row)]) for row in lengths.tolist()])
    enforce(
        verdict("logits", FORWARD, *logits(models, tokens, position_ids=position_ids,
                                           use_cache=False))
    )  # fmt: skip


@pytest.mark.parametrize("cache", ["DynamicCache", "StaticCache"])
def test_decoding(models: dict[str, Any], cache: str) -> None:
    """A prompt, a chunk and single tokens through transformers' cache; the oracle has none."""
    tokens = torch.randint(500, (2, 30))
    _, *others = logits(models, tokens)
    fused = models["fused"]
    past = cache_for(fused, cache)
    with torch.no_grad():
        parts = [fused(chunk, **past).logits for chunk in tokens.split([17, 9, 1, 3], dim=1)]
    enforce(verdict("logits", FORWARD, torch.cat(parts, 1), *others))


def test_training_step(models: dict[str, Any]) -> None:
    tokens = torch.randint(500, (2, 50))
    for model in models.values():
        model(tokens, labels=tokens).loss.backward()
    named = [dict(models[name].named_parameters()) for name in ORDER]
    for name in named[0]:
        enforce(verdict(f"d{name}", GRADIENT, *(p[name].grad for p in named)))


def test_another_pairing_breaks_the_law(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """unilm's heads, components side by side: right for V1 checkpoints, wrong for DiffLlama's."""
    from diffattn_cuda import _hf_attention

    monkeypatch.setattr(_hf_attention, "pairs", lambda x: x.unflatten(2, (-1, 2)))
    tokens = torch.randint(500, (2, 70))
    assert verdict("logits", FORWARD, *logits(models, tokens)).ratio > 10
