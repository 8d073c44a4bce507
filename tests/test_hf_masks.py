"""attn_implementation="diffattn" under masks and with packed documents, compared with eager.

The law is in test_hf_diffllama.py; here a key that is seen or not seen against the mask makes an
error of some per cent, and fp32's own is below 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.diffllama import tokens, twins, worst_row
from support.threads import threads
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")
SEQLEN = 24
HIDDEN = {  # which tokens of each of two sequences the mask hides
    "none": [[], []],
    "left": [[], range(9)],
    "right": [range(17, SEQLEN), []],
    "both": [range(3), [*range(5), *range(20, SEQLEN)]],
    "hole": [range(7, 12), []],
    "holes": [[2, 3, 11, 19], [*range(4), 8, 9, 10, SEQLEN - 1]],
    "all": [range(SEQLEN), range(2)],
}


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Any, Any]]:
    """(eager, fused), on one thread: at these sizes a second one waits more than it works."""
    with threads(1):
        yield twins("eager", "diffattn")


@pytest.fixture(params=HIDDEN)
def mask(request: pytest.FixtureRequest) -> Tensor:
    mask = torch.ones(2, SEQLEN, dtype=torch.long)
    for row, hidden in zip(mask, HIDDEN[request.param], strict=True):
        row[list(hidden)] = 0
    return mask


@pytest.fixture(scope="module")
def compiled(models: tuple[Any, Any]) -> Any:
    """fused without a graph break; aot_eager traces the backward too."""
    return torch.compile(models[1], fullgraph=True, backend="aot_eager")


def comparable(mask: Tensor) -> Tensor:
    """Rows of visible tokens; of the hidden ones those in sequences without a hole.

    In a hole eager sees what came before and fused gives 0; where no key is visible both average
    all keys, those of holes too. No visible token reads any of that.
    """
    seen, to_come = mask.cumsum(1) > 0, mask.flip(1).cumsum(1).flip(1) > 0
    hole = ((mask == 0) & seen & to_come).any(1, keepdim=True)
    return (mask == 1) | ~hole


def test_logits_equal_eager(models: tuple[Any, Any], mask: Tensor) -> None:
    x, rows = tokens(2, SEQLEN), comparable(mask)
    with torch.no_grad():
        want, got = (
            model(x, attention_mask=mask, use_cache=False).logits[rows] for model in models
        )
    assert worst_row(got, want) < 1e-5


def gradients(model: Any, call: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits and the gradient of every parameter."""
    model.zero_grad()
    out = call(**inputs, use_cache=False)
    out.loss.backward()
    return out.logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_equal_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name, gradient in want.items():
        assert worst_row(got[name].flatten(), gradient.flatten()) < 1e-4, name


@pytest.mark.parametrize("way", ["called", "compiled"])
def test_training_equals_eager(
    models: tuple[Any, Any], compiled: Any, mask: Tensor, way: str
) -> None:
    """A loss that counts no logits of hidden tokens, as a hidden token predicts nothing."""
    eager, fused = models
    x, rows = tokens(2, SEQLEN), comparable(mask)
    counts = mask.bool() & mask.roll(1, 1).bool()
    inputs = {"input_ids": x, "attention_mask": mask, "labels": x.masked_fill(~counts, -100)}
    got, got_gradients = gradients(fused, fused if way == "called" else compiled, **inputs)
    want, want_gradients = gradients(eager, eager, **inputs)
    assert worst_row(got[rows], want[rows]) < 1e-5
    assert_equal_gradients(got_gradients, want_gradients)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # 5.23 has one name
def test_gradient_checkpointing(models: tuple[Any, Any]) -> None:
    eager, fused = models
    x, mask = tokens(2, SEQLEN), torch.ones(2, SEQLEN, dtype=torch.long)
    mask[1, :9] = 0
    inputs = {"input_ids": x, "attention_mask": mask, "labels": x.where(mask.cumsum(1) > 1, -100)}
    _, want = gradients(eager, eager, **inputs)
    fused.train().gradient_checkpointing_enable()
    _, got = gradients(fused, fused, **inputs)
    fused.eval().gradient_checkpointing_disable()
    assert_equal_gradients(got, want)


def test_labels_on_padding(models: tuple[Any, Any]) -> None:
    """Rows that see no key count in this loss: they average all keys, as eager attention's do."""
    x, mask = tokens(2, SEQLEN), torch.ones(2, SEQLEN, dtype=torch.long)
    mask[1, :9] = 0
    heads = []
    for model in models:
        _, found = gradients(model, model, input_ids=x, attention_mask=mask, labels=x)
        heads.append(found["lm_head.weight"].flatten())
    want, got = heads
    assert worst_row(got, want) < 1e-5


def test_layers_compiled_one_by_one() -> None:
    """By the default backend, with its caches on. λ_init is another in each layer."""
    (model,) = twins("diffattn", num_hidden_layers=5)
    x = torch.randn(2, SEQLEN, 128)
    visible = torch.ones(2, SEQLEN, dtype=torch.bool)
    visible[0, 5:8], visible[1, :9] = False, False
    tables = model.model.rotary_emb(x, torch.arange(SEQLEN)[None])
    with torch.no_grad(), threads(1):
        for layer in model.model.layers:
            attention, mask = layer.self_attn, visible[:, None, None]
            want, _ = attention(x, tables, mask)
            got, _ = torch.compile(attention, fullgraph=True)(x, tables, mask)
            assert worst_row(got[visible], want[visible]) < 1e-5, attention.layer_idx
