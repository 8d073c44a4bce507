"""generate() and caches under attn_implementation="diffattn", compared with eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.diffllama import cache_for, tokens, twins, worst_row
from support.threads import threads
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed")
SEQLEN = 20
HIDDEN = {  # which tokens of each of three prompts the mask hides
    "none": [[], [], []],
    "left": [[], range(9), [0]],
    "right": [[], range(12, SEQLEN), []],
    "holes": [[], [3, 4, 10], [*range(5), 7, *range(15, SEQLEN)]],
}


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Any, Any]]:
    with threads(1):
        yield twins("eager", "diffattn")


def hidden(name: str) -> Tensor:
    mask = torch.ones(3, SEQLEN, dtype=torch.long)
    for row, columns in zip(mask, HIDDEN[name], strict=True):
        row[list(columns)] = 0
    return mask


def generate(model: Any, x: Tensor, **options: Any) -> Tensor:
    return model.generate(
        x, **{"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | options
    )


@pytest.mark.parametrize("mask", HIDDEN)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 7},
        {"prefill_chunk_size": 7, "cache_implementation": "static"},
        {"num_beams": 3},
    ],
    ids=["dynamic", "no_cache", "static", "chunks", "static_chunks", "beams"],
)
def test_the_same_tokens(models: tuple[Any, Any], options: dict[str, Any], mask: str) -> None:
    x, attention_mask = tokens(3, SEQLEN), hidden(mask)
    want, got = (generate(model, x, attention_mask=attention_mask, **options) for model in models)
    assert torch.equal(got, want)


def test_the_same_tokens_in_guesses(models: tuple[Any, Any]) -> None:
    """Prompt lookup checks several guessed tokens a step, and crops wrong ones off the cache."""
    x = tokens(1, 6).repeat(1, 4)
    plain = generate(models[1], x)
    want, got = (generate(model, x, prompt_lookup_num_tokens=4) for model in models)
    assert torch.equal(got, want) and torch.equal(got, plain)


def test_a_second_turn(models: tuple[Any, Any]) -> None:
    """A prompt behind the returned cache of another one, padded on the left."""
    x, more, mask = tokens(3, SEQLEN), tokens(3, 5), hidden("left")
    found = []
    for model in models:
        first = generate(model, x, attention_mask=mask, return_dict_in_generate=True)
        both = torch.cat([first.sequences, more], 1)
        longer = torch.cat([mask, mask.new_ones(3, both.shape[1] - SEQLEN)], 1)
        name = "cache" if hasattr(first, "cache") else "past_key_values"
        found.append(generate(model, both, attention_mask=longer, **{name: getattr(first, name)}))
    assert torch.equal(*found)


def in_chunks(model: Any, x: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Logits of sequences that go through a cache in chunks of tokens."""
    cache, done, parts = cache_for(model, kind), 0, []
    for chunk in x.split([7, 5, 1, 1, SEQLEN - 14], 1):
        done += chunk.shape[1]
        parts.append(model(chunk, attention_mask=mask[:, :done], **cache).logits)
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", ["DynamicCache", "StaticCache"])
@pytest.mark.parametrize("mask", HIDDEN)
def test_chunks(models: tuple[Any, Any], kind: str, mask: str) -> None:
    """Rows of visible tokens, whatever is hidden before, between and after them."""
    x, attention_mask = tokens(3, SEQLEN), hidden(mask)
    with torch.no_grad():
        want, got = (in_chunks(model, x, attention_mask, kind) for model in models)
    visible = attention_mask.bool()
    assert worst_row(got[visible], want[visible]) < 1e-5


def test_compiled_steps(models: tuple[Any, Any]) -> None:
    """One graph for every mask and step: a compiled step cannot ask what the mask hides."""
    eager, fused = models
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    for name in HIDDEN:
        x, mask = tokens(3, SEQLEN), torch.zeros(3, 32, dtype=torch.long)
        found = []
        for model, step in (eager, eager), (fused, compiled):
            cache, parts = cache_for(model, "StaticCache"), []
            with torch.no_grad():
                mask[:, :15] = hidden(name)[:, :15]
                model(x[:, :15], attention_mask=mask, **cache)
                for token in range(15, SEQLEN):
                    mask[:, token] = hidden(name)[:, token]
                    parts += [step(x[:, token : token + 1], attention_mask=mask, **cache).logits]
            found.append(torch.cat(parts, 1))
            mask.zero_()
        visible = hidden(name)[:, 15:].bool()
        assert worst_row(found[1][visible], found[0][visible]) < 1e-5, name


def test_a_mask_as_long_as_a_static_cache(models: tuple[Any, Any]) -> None:
    """It hides the room that is left, which is no reason to copy the cache at every step."""
    from diffattn_cuda._hf_mask import describe_mask

    x, mask = tokens(3, SEQLEN), torch.zeros(3, 32, dtype=torch.long)
    mask[:, :SEQLEN] = hidden("left")
    with torch.no_grad():
        want, got = (
            model(x, attention_mask=mask, **cache_for(model, "StaticCache")).logits
            for model in models
        )
    visible = hidden("left").bool()
    assert worst_row(got[visible], want[visible]) < 1e-5
    described = describe_mask(3, SEQLEN, 32, attention_mask=mask.bool())
    assert described is not None and described.flatten().tolist() == [0, 9, 1]


def test_keys_that_the_mask_does_not_reach_are_hidden(models: tuple[Any, Any]) -> None:
    """As in eager: a mask of the first tokens only."""
    x, mask = tokens(3, SEQLEN), torch.ones(3, 14)
    with torch.no_grad():
        want, got = (
            model(x, attention_mask=mask, **cache_for(model, "StaticCache")).logits
            for model in models
        )
    assert worst_row(got, want) < 1e-5


def test_generate_compiles_its_steps(models: tuple[Any, Any]) -> None:
    """As it does on a GPU by itself: the mask of a step is made outside the compiled function."""
    from transformers import CompileConfig

    torch._dynamo.reset()
    config = CompileConfig(fullgraph=True, backend="eager")
    config._compile_all_devices = True
    x, mask = tokens(3, SEQLEN), hidden("left")
    options = {"attention_mask": mask, "cache_implementation": "static"}
    want = generate(models[0], x, **options)
    assert torch.equal(generate(models[1], x, compile_config=config, **options), want)


@pytest.mark.parametrize("mask", ["none", "left"])
def test_gradients_behind_a_cache(models: tuple[Any, Any], mask: str) -> None:
    x, attention_mask, found = tokens(3, SEQLEN), hidden(mask), []
    for model in models:
        cache = cache_for(model, "DynamicCache")
        model.zero_grad()
        with torch.no_grad():
            model(x[:, :12], attention_mask=attention_mask[:, :12], **cache)
        model(x[:, 12:], attention_mask=attention_mask, labels=x[:, 12:], **cache).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, want in found[0].items():
        assert worst_row(found[1][name].flatten(), want.flatten()) < 1e-4, name


def test_no_gradient_behind_a_cache_under_a_hole(models: tuple[Any, Any]) -> None:
    x, cache = tokens(3, SEQLEN), cache_for(models[1], "DynamicCache")
    with torch.no_grad():
        models[1](x[:, :12], **cache)
    with pytest.raises(NotImplementedError, match="no gradient behind a cache"):
        models[1](x[:, 12:], attention_mask=hidden("holes"), **cache)


@pytest.mark.parametrize("kind", ["DynamicCache", "StaticCache"])
def test_autocast(models: tuple[Any, Any], kind: str) -> None:
    """An fp32 model under bf16: as far from its fp32 logits as eager is, and bf16 in the cache."""
    eager, fused = models
    x, mask = tokens(3, SEQLEN), hidden("left")
    with torch.no_grad():
        exact = eager(x, attention_mask=mask, use_cache=False).logits[mask.bool()]
        with torch.autocast("cpu", torch.bfloat16):
            half = eager(x, attention_mask=mask, use_cache=False).logits[mask.bool()]
            got = in_chunks(fused, x, mask, kind)[mask.bool()]
            cache = cache_for(fused, kind)
            fused(x, **cache)
    assert worst_row(got, exact) < 2 * worst_row(half, exact)
    layer = next(iter(cache.values())).layers[0]
    assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        want, got = (generate(model, x, attention_mask=mask).shape for model in models)
    assert got == want


def test_a_cache_filled_outside_autocast(models: tuple[Any, Any]) -> None:
    eager, fused = models
    x, cache = tokens(3, SEQLEN), cache_for(fused, "DynamicCache")
    with torch.no_grad():
        want = eager(x).logits[:, 12:]
        fused(x[:, :12], **cache)
        with torch.autocast("cpu", torch.bfloat16):
            got = fused(x[:, 12:], **cache).logits
    assert worst_row(got, want) < 0.05


def sliding() -> Any:
    from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

    return Cache(layers=[DynamicSlidingWindowLayer(sliding_window=8) for _ in range(2)])


def quantized() -> Any:
    from transformers.cache_utils import Cache, QuantizedLayer

    class Quantized(QuantizedLayer):
        def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
            return tensor

        def _dequantize(self, q_tensor: Tensor) -> Tensor:
            return q_tensor

    return Cache(layer_class_to_replicate=Quantized)


class Paged:
    """As far as a model sees it, the cache of continuous batching: it is no Cache."""

    def get_seq_length(self) -> int:
        return 0

    def get_query_offset(self, layer: int) -> int:
        return 0

    def get_mask_sizes(self, length: int, layer: int) -> tuple[int, int]:
        return length, 0


@pytest.mark.parametrize(
    "make, says",
    [(sliding, "DynamicSlidingWindowLayer"), (quantized, "Cache of Quantized"), (Paged, "Paged")],
)
def test_refused_caches(models: tuple[Any, Any], make: Any, says: str) -> None:
    name = next(iter(cache_for(models[1], "DynamicCache")))
    with pytest.raises(NotImplementedError, match=f"DynamicLayer or StaticLayer, got .*{says}"):
        models[1](tokens(1, 5), **{name: make()})


@pytest.mark.parametrize("kind", ["DynamicCache", "StaticCache"])
def test_a_cache_of_another_implementation(models: tuple[Any, Any], kind: str) -> None:
    eager, fused = models
    cache = cache_for(eager, kind)
    with torch.no_grad():
        eager(tokens(1, 5), **cache)
        with pytest.raises(NotImplementedError, match='filled by another attn_impl.* "diffattn"'):
            fused(tokens(1, 1), **cache)
