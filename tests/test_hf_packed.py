"""attn_implementation="diffattn" with documents packed into rows, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.diffllama import tokens, twins, worst_row
from support.threads import threads
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")
LENGTHS = ((13, 1, 10), (5, 19))  # documents of two rows


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Any, Any]]:
    with threads(1):
        yield twins("eager", "diffattn")


def positions(*rows: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in rows])


def boundaries(*lengths: int) -> Tensor:
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)


def flash_kwargs(*lengths: int, longest: Any) -> dict[str, Any]:
    """What DataCollatorWithFlattening(return_flash_attn_kwargs=True) adds."""
    cu = boundaries(*lengths)
    return {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": longest,
            "max_length_k": longest}  # fmt: skip


def logits(model: Any, x: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(x, use_cache=False, **inputs).logits


def test_position_ids(models: tuple[Any, Any]) -> None:
    """Equal to eager, and each document to itself alone."""
    eager, fused = models
    x, position_ids = tokens(2, 24), positions(*LENGTHS)
    got = logits(fused, x, position_ids=position_ids)
    assert worst_row(got, logits(eager, x, position_ids=position_ids)) < 1e-5
    for row, lengths in enumerate(LENGTHS):
        for document, part in zip(x[row].split(lengths), got[row].split(lengths), strict=True):
            assert worst_row(part, logits(eager, document[None])[0]) < 1e-5


def test_position_ids_of_one_document_shared_by_all_rows(models: tuple[Any, Any]) -> None:
    eager, fused = models
    x, shifted = tokens(2, 9), torch.arange(3, 12)[None]
    got, want = (logits(model, x, position_ids=shifted) for model in (fused, eager))
    assert worst_row(got, want) < 1e-5


@pytest.mark.parametrize("longest", [13, torch.tensor(13)], ids=["int", "tensor"])
def test_cu_seq_lens(models: tuple[Any, Any], longest: Any) -> None:
    eager, fused = models
    x, lengths = tokens(1, 24), LENGTHS[0]
    kwargs = flash_kwargs(*lengths, longest=longest)
    got = logits(fused, x, position_ids=positions(lengths), **kwargs)
    assert worst_row(got, logits(eager, x, position_ids=positions(lengths))) < 1e-5
    with torch.no_grad():  # next to a cache, which a training loop may forget to switch off
        cached = fused(x, position_ids=positions(lengths), use_cache=True, **kwargs).logits
    assert torch.equal(cached, got)


def test_gradients(models: tuple[Any, Any]) -> None:
    x, position_ids = tokens(2, 24), positions(*LENGTHS)
    found = []
    for model in models:
        model.zero_grad()
        model(x, position_ids=position_ids, labels=x, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, want in found[0].items():
        assert worst_row(found[1][name].flatten(), want.flatten()) < 1e-4, name


def test_compiled(models: tuple[Any, Any]) -> None:
    """cu_seq_lens say where documents start; positions, which a graph cannot ask, must not."""
    eager, fused = models
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    x, lengths = tokens(1, 24), LENGTHS[0]
    want = logits(eager, x, position_ids=positions(lengths))
    kwargs = flash_kwargs(*lengths, longest=13)
    assert worst_row(logits(compiled, x, position_ids=positions(lengths), **kwargs), want) < 1e-5
    assert worst_row(logits(compiled, x), logits(eager, x)) < 1e-5
    with pytest.raises(RuntimeError, match="in a compiled model .* pass cu_seq_lens_q"):
        logits(compiled, x, position_ids=positions(lengths))


ONES = torch.ones(1, 24, dtype=torch.long)
HOLE = ONES.index_fill(1, torch.tensor([5, 6]), 0)
PACKED = {"position_ids": positions(LENGTHS[0])}
FLASH = flash_kwargs(*LENGTHS[0], longest=13)
REFUSED = {
    "documents next to a cache": ({**PACKED, "use_cache": True}, "pass use_cache=False"),
    "documents and a mask of ones": ({**PACKED, "attention_mask": ONES}, "pass cu_seq_lens_q"),
    "cu_seq_lens and a mask": ({**FLASH, "attention_mask": HOLE}, "or cu_seq_lens, not both"),
    "half of cu_seq_lens": (
        {"cu_seq_lens_q": boundaries(24)}, "cu_seq_lens_q and cu_seq_lens_k must be given together"
    ),
    "an additive 4-D mask": (
        {"attention_mask": torch.zeros(1, 1, 24, 24)},
        r"mask of shape \(1, 1, 24, 24\) and dtype torch.float32",
    ),
    "a 4-D mask": (
        {"attention_mask": torch.ones(1, 1, 24, 24, dtype=torch.bool)}, "dtype torch.bool"
    ),
    "output_attentions": ({"output_attentions": True}, 'output_attentions=True: use "eager"'),
    "is_causal": ({"is_causal": False}, "is_causal"),
}  # fmt: skip


@pytest.mark.parametrize("inputs, says", REFUSED.values(), ids=REFUSED)
def test_refused(models: tuple[Any, Any], inputs: dict[str, Any], says: str) -> None:
    with pytest.raises((NotImplementedError, ValueError), match=says), torch.no_grad():
        models[1](tokens(1, 24), **{"use_cache": False, **inputs})


def test_a_config_that_is_not_causal(models: tuple[Any, Any]) -> None:
    (model,) = twins("diffattn", is_causal=False)
    with pytest.raises(NotImplementedError, match="is causal, config.is_causal is not"):
        logits(model, tokens(1, 24))


def test_a_mask_that_shows_the_future(models: tuple[Any, Any]) -> None:
    """Of transformers' mask functions only those of packed documents are understood."""
    from transformers.masking_utils import bidirectional_mask_function

    from diffattn_cuda._hf_mask import describe_mask

    with pytest.raises(NotImplementedError, match="shows the future"):
        describe_mask(1, 24, 24, mask_function=bidirectional_mask_function)
