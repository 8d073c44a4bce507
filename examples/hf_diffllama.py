"""transformers' DiffLlama on the fused kernels: same logits, same tokens, same gradients."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from diffattn_cuda.hf import register


def small_config(**changes: Any) -> DiffLlamaConfig:
    sizes = {
        "vocab_size": 500, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "initializer_range": 0.1,
        "eos_token_id": None,
    }  # fmt: skip
    return DiffLlamaConfig(**(sizes | changes))


def main() -> None:
    register()
    disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:  # any DiffLlama checkpoint
        DiffLlamaForCausalLM(small_config()).save_pretrained(folder)
        eager, fused = (
            DiffLlamaForCausalLM.from_pretrained(folder, attn_implementation=way)
            for way in ("eager", "diffattn")
        )

    tokens = torch.randint(500, (2, 100))
    with torch.no_grad():
        want, got = eager(tokens).logits, fused(tokens).logits
    print(f"logits: relative difference {(got - want).norm() / want.norm():.1e}")

    prompt: dict[str, Any] = {
        "input_ids": tokens[:, :20],
        "attention_mask": torch.ones(2, 20, dtype=torch.long),
    }
    prompt["attention_mask"][1, :7] = 0  # a shorter prompt, padded on the left
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    # transformers' own types do not say that this model generates.
    both: tuple[Any, Any] = (eager, fused)
    want, got = (model.generate(**prompt, **options) for model in both)
    assert torch.equal(got, want)
    print(f"generate: the same {got[:, 20:].numel()} tokens, among them {got[0, 20:28].tolist()}")

    for model in (eager, fused):
        model(tokens, labels=tokens).loss.backward()
    for (name, p), q in zip(eager.named_parameters(), fused.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        difference = (q.grad - p.grad).norm() / p.grad.norm()
        assert difference < 1e-3, (name, difference)
    print(f"training step: {len(list(fused.parameters()))} gradients agree")


if __name__ == "__main__":
    main()
