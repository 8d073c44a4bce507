"""A Motif-2 in small: its checkpoint's names and layouts around one fused call per layer.

Of a group's query heads the first four are signals and the fifth is the noise (head 5g + i, noise
5g + 4). k has K of the signals and K of the noise side by side (heads 2g and 2g + 1), and v two
halves of a head. So q, k and v are views of what the projections give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffattn_cuda import diff_flash_attn_func, diff_flash_attn_with_kvcache
from diffattn_cuda.nn import KVCache, lambda_init_fn, rotary_tables
from diffattn_cuda.reference import apply_rotary


@dataclass(frozen=True)
class Config:
    """Names of Motif-2's config.json; of Motif-2-12.7B: 40 heads, 8 of noise, 16 KV heads, d = 128.

    A real one has hidden_size 4096 and 40 layers.
    """

    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 3
    vocab_size: int = 100
    num_attention_heads: int = 20
    num_noise_heads: int = 4
    num_key_value_heads: int = 8
    head_dim: int = 16
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    attn_rms_norm_eps: float = 1e-5


class MotifAttention(nn.Module):
    def __init__(self, c: Config, depth: int) -> None:
        super().__init__()
        self.d = c.head_dim
        self.groups = c.num_noise_heads
        self.maps = c.num_attention_heads // c.num_noise_heads  # r + 1
        self.kv_heads = c.num_key_value_heads // 2  # pairs: K of the signals, K of the noise
        self.lambda_init = lambda_init_fn(depth - 1)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.q_proj = linear(c.hidden_size, c.num_attention_heads * self.d)
        self.k_proj = linear(c.hidden_size, c.num_key_value_heads * self.d)
        self.v_proj = linear(c.hidden_size, c.num_key_value_heads * self.d)
        outputs = self.groups * (self.maps - 1)
        self.o_proj = linear(outputs * 2 * self.d, c.hidden_size)
        self.lambda_q1 = nn.Parameter(0.1 * torch.randn(self.d))
        self.lambda_k1 = nn.Parameter(0.1 * torch.randn(self.d))
        self.lambda_q2 = nn.Parameter(0.1 * torch.randn(self.d))
        self.lambda_k2 = nn.Parameter(0.1 * torch.randn(self.d))
        self.subln = nn.RMSNorm(2 * self.d, c.attn_rms_norm_eps)

    def lam(self) -> Tensor:
        """λ in fp32 or wider. Motif's code rounds it to the dtype of the attention's output."""
        acc = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        e1 = (self.lambda_q1 * self.lambda_k1).sum(dtype=acc).exp()
        e2 = (self.lambda_q2 * self.lambda_k2).sum(dtype=acc).exp()
        return e1 - e2 + self.lambda_init

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        b, s, _ = x.shape
        q = self.q_proj(x).view(b, s, self.groups, self.maps, self.d)
        k = self.k_proj(x).view(b, s, self.kv_heads, 2, self.d)
        v = self.v_proj(x).view(b, s, self.kv_heads, 2 * self.d)
        cos, sin = (table.to(q.dtype) for table in tables)
        epilogue = {
            "causal": True, "norm_weight": self.subln.weight, "norm_eps": self.subln.eps,
            "out_scale": 1 - self.lambda_init,
        }  # fmt: skip
        if cache is None:
            q, k = (apply_rotary(t, cos[:s], sin[:s], interleaved=False) for t in (q, k))
            out = diff_flash_attn_func(q, k, v, self.lam(), **epilogue)
        else:
            out = diff_flash_attn_with_kvcache(
                q, cache.k, cache.v, self.lam(), k, v, cos, sin, cache.seqlens,
                rotary_interleaved=False, **epilogue,
            )  # fmt: skip
            cache.seqlens += s
        return self.o_proj(out.flatten(2))

    def make_cache(self, batch: int, capacity: int) -> KVCache:
        new_zeros, heads = self.k_proj.weight.new_zeros, self.kv_heads
        return KVCache(
            new_zeros(batch, capacity, 2 * heads, self.d),
            new_zeros(batch, capacity, heads, 2 * self.d),
        )


class PolyNorm(nn.Module):
    """Of arXiv 2411.03884: w0·norm(x³) + w1·norm(x²) + w2·norm(x) + b."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        powers = (nn.functional.rms_norm(x**n, x.shape[-1:], eps=1e-6) for n in (3, 2, 1))
        return sum((w * p for w, p in zip(self.weight, powers, strict=True)), self.bias)


class MotifMLP(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)
        self.act_fn = PolyNorm()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


class MotifDecoderLayer(nn.Module):
    def __init__(self, c: Config, depth: int) -> None:
        super().__init__()
        self.self_attn = MotifAttention(c, depth)
        self.mlp = MotifMLP(c)
        self.input_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, tables: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class MotifModel(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        # Listed twice, because a ModuleList does not tell the type of its modules.
        self.blocks = [MotifDecoderLayer(c, depth) for depth in range(c.num_hidden_layers)]
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(self.blocks)
        self.norm = nn.RMSNorm(c.hidden_size, c.rms_norm_eps)


class Motif(nn.Module):
    """Its state_dict has the names of the checkpoint, `model.layers.0.self_attn.q_proj.weight`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = MotifModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        x = self.model.embed_tokens(tokens)
        positions = tokens.shape[1] if caches is None else caches[0].k.shape[1]
        tables = rotary_tables(positions, self.config.head_dim, self.config.rope_theta, x.device)
        layers = self.model.blocks
        for layer, cache in zip(layers, caches or [None] * len(layers), strict=True):
            x = layer(x, tables, cache)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits

    def make_caches(self, batch: int, capacity: int) -> list[KVCache]:
        return [layer.self_attn.make_cache(batch, capacity) for layer in self.model.blocks]


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = Motif(Config())
    tokens = torch.randint(100, (2, 40))
    want = model(tokens)
    caches = model.make_caches(2, capacity=40)
    got = torch.cat([model(part, caches) for part in tokens.split([30, 1, 1, 8], dim=1)], 1)
    difference = ((got - want).norm() / want.norm()).item()
    assert difference < 1e-5, difference
    attention = model.model.blocks[0].self_attn
    heads = f"{attention.groups} groups of {attention.maps - 1} signals and a noise"
    print(f"{heads}: 40 tokens at once and 10 of them from the cache agree within {difference:.1e}")
    kept = sum(t.nbytes for cache in caches for t in (cache.k, cache.v)) // (2 * 40 * len(caches))
    print(f"the cache has {kept} bytes per token and layer: a group's keys and values once")


if __name__ == "__main__":
    main()
