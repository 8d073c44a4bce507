"""A DIFF Transformer language model: pre-RMSNorm, differential attention, SwiGLU (2410.05258)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffattn_cuda.nn import KVCache, MultiheadDiffAttn, StreamingKVCache, rotary_tables

Caches = list[KVCache] | list[StreamingKVCache]  # one per block


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(
        self, dim: int, depth: int, heads: int, kv_heads: int, implementation: str
    ) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(dim, eps=1e-5)
        self.attn = MultiheadDiffAttn(dim, depth, heads, kv_heads, implementation=implementation)
        self.mlp_norm = nn.RMSNorm(dim, eps=1e-5)
        self.mlp = SwiGLU(dim, 8 * dim // 3 // 16 * 16)

    def forward(self, x: Tensor, rel_pos: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rel_pos, cache)
        return x + self.mlp(self.mlp_norm(x))


class DiffLM(nn.Module):
    """Next-byte prediction.

    Args:
        dim: width; the head dim is dim / heads / 2, a multiple of 16.
        depth: number of blocks.
        heads, kv_heads: of every block's attention.
        max_seqlen: longest sequence, generated part included.
        vocab: number of tokens; 256 for bytes.
        implementation: "fused" (the kernels) or "eager" (the formula in plain PyTorch).
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        kv_heads: int,
        max_seqlen: int,
        vocab: int = 256,
        implementation: str = "fused",
    ) -> None:
        super().__init__()
        self.cos: Tensor
        self.sin: Tensor
        self.max_seqlen = max_seqlen
        self.embed = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(
            Block(dim, i, heads, kv_heads, implementation) for i in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, vocab, bias=False)
        cos, sin = rotary_tables(max_seqlen, dim // heads // 2)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, caches: Caches | None = None) -> Tensor:
        """tokens (batch, seqlen) → logits (batch, seqlen, vocab); caches: one per block."""
        x = self.embed(tokens)
        for i, block in enumerate(self.blocks):
            x = block(x, (self.cos, self.sin), None if caches is None else caches[i])
        return self.head(self.norm(x))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy, in nats, of every token after the first."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def attention_layers(self) -> list[MultiheadDiffAttn]:
        return [m for m in self.modules() if isinstance(m, MultiheadDiffAttn)]

    def make_caches(self, batch: int, dtype: torch.dtype | None = None) -> list[KVCache]:
        return [m.make_cache(batch, self.max_seqlen, dtype) for m in self.attention_layers()]

    @torch.inference_mode()
    def generate(
        self,
        prompt: Tensor,
        new_tokens: int,
        temperature: float = 0.0,
        cache_dtype: torch.dtype | None = None,
        caches: Caches | None = None,
    ) -> Tensor:
        """Continue prompt (batch, seqlen) by new_tokens; temperature 0 takes the likeliest one.

        The prompt fills the caches in one forward; each further token is one forward of length 1.
        cache_dtype: what the projections give under autocast; default the weights' dtype.
        caches: empty ones, one per block; default those of make_caches.
        """
        caches = self.make_caches(prompt.shape[0], cache_dtype) if caches is None else caches
        tokens, new = prompt, prompt
        for _ in range(new_tokens):
            logits = self(new, caches)[:, -1].float()  # (batch, vocab)
            if temperature > 0:
                new = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                new = logits.argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, new], dim=1)
        return tokens
