"""transformers' DiffLlama on the fused kernels: same weights, same logits, same generated tokens.

    register()
    model = DiffLlamaForCausalLM.from_pretrained(name, attn_implementation="diffattn")

DiffLlama calls its attention function twice, and each call computes both maps. The fused kernel
needs all of V at once, so it replaces the module's forward, not the function.
"""

from __future__ import annotations

import tempfile
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Cache,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
)
from transformers.masking_utils import flash_attention_mask
from transformers.models.diffllama.modeling_diffllama import (
    DiffLlamaAttention,
    apply_rotary_pos_emb,
)
from transformers.monkey_patching import register_patch_mapping
from transformers.utils.logging import disable_progress_bar

from diffattn_cuda import diff_flash_attn_func, diff_flash_attn_with_kvcache


class FusedDiffLlamaAttention(DiffLlamaAttention):
    """DiffLlamaAttention in one kernel under attn_implementation="diffattn", else as it was."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if self.config._attn_implementation != "diffattn":
            return super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(hidden_states).view(heads) for project in projections)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings, unsqueeze_dim=2)
        q, k, v = pairs(q), pairs(k), pairs(v).flatten(3)  # (b, s, H, 2, d), .., (b, s, Hk, 2d)
        length: int | Tensor = q.shape[1]
        if past_key_values is not None:
            k, v, length = self.append(k, v, past_key_values)
        out = self.attend(q, k, v, length, left_padding(attention_mask))
        return self.o_proj(out.flatten(2)), None

    def append(self, k: Tensor, v: Tensor, cache: Cache) -> tuple[Tensor, Tensor, int | Tensor]:
        """The cache's keys and values, and how many there are: a StaticCache has room for more.

        To the cache a head is a pair, 2d wide; views lead back.
        """
        k, v = cache.update(k.flatten(3).transpose(1, 2), v.transpose(1, 2), self.layer_idx)
        k, v = k.transpose(1, 2).unflatten(3, (2, self.head_dim)), v.transpose(1, 2)
        return k, v, cache.get_seq_length(self.layer_idx)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, length: int | Tensor, leftpad: Tensor | None
    ) -> Tensor:
        """(batch, seqlen_q, H, 2d); DiffLlama's headwise norm has no weight."""
        options: dict[str, Any] = {
            "softmax_scale": self.scaling,
            "causal": True,
            "norm_eps": self.groupnorm.eps,
            "out_scale": 1 - self.lambda_init,
        }
        if leftpad is None and k.shape[1] == q.shape[1]:  # training, or a prompt
            return diff_flash_attn_func(q, k, v, self.lambda_full(), **options)
        seqlens = torch.as_tensor(length, dtype=torch.int32, device=q.device).repeat(q.shape[0])
        return diff_flash_attn_with_kvcache(
            q, k, v, self.lambda_full(), cache_seqlens=seqlens, cache_leftpad=leftpad, **options
        )

    def lambda_full(self) -> Tensor:
        """λ, () in fp32. DiffLlama rounds it to q's dtype: in bf16 it is off by up to 0.01."""
        lambda_1 = (self.lambda_q1 * self.lambda_k1).sum(dtype=torch.float32).exp()
        lambda_2 = (self.lambda_q2 * self.lambda_k2).sum(dtype=torch.float32).exp()
        return lambda_1 - lambda_2 + self.lambda_init


def pairs(x: Tensor) -> Tensor:
    """(b, s, 2·n, d), first all heads of component 1, then of 2, as (b, s, n, 2, d): a view."""
    return x.unflatten(2, (2, -1)).transpose(2, 3)


def left_padding(mask: Tensor | None) -> Tensor | None:
    """(batch,) int32, or None without any. Padding on the right is behind the causal mask."""
    if mask is None:
        return None
    padding = (~mask).int().cumprod(1).sum(1, dtype=torch.int32)
    return padding if padding.any() else None


def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError('attn_implementation="diffattn" is for DiffLlama')


def register() -> None:
    """Every DiffLlama that is made or loaded from now on knows attn_implementation="diffattn"."""
    AttentionInterface.register("diffattn", refuse)
    AttentionMaskInterface.register("diffattn", flash_attention_mask)  # padding only, as (b, s)
    register_patch_mapping({"DiffLlamaAttention": FusedDiffLlamaAttention}, overwrite=True)


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

    prompt = {"input_ids": tokens[:, :20], "attention_mask": torch.ones(2, 20, dtype=torch.long)}
    prompt["attention_mask"][1, :7] = 0  # a shorter prompt, padded on the left
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    want, got = (model.generate(**prompt, **options) for model in (eager, fused))
    assert torch.equal(got, want)
    print(f"generate: the same {got[:, 20:].numel()} tokens, among them {got[0, 20:28].tolist()}")

    for model in (eager, fused):
        model(tokens, labels=tokens).loss.backward()
    for (name, p), q in zip(eager.named_parameters(), fused.parameters(), strict=True):
        difference = (q.grad - p.grad).norm() / p.grad.norm()
        assert difference < 1e-3, (name, difference)
    print(f"training step: {len(list(fused.parameters()))} gradients agree")


if __name__ == "__main__":
    main()
