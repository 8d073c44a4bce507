"""A transformer block with DIFF V2 attention: a λ for every token and head, plain keys and values.

V2 doubles the query heads of an ordinary block and leaves K, V, the KV cache and the output
projection as they are; heads 2h and 2h+1 are subtracted with λ = sigmoid(x·W_λ).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffattn_cuda.nn import KVCache, MultiheadDiffAttnV2, rotary_tables


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, (batch, seqlen, dim) → the same."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(dim, eps=1e-5)
        self.attn = MultiheadDiffAttnV2(dim, heads, kv_heads)
        self.mlp_norm = nn.RMSNorm(dim, eps=1e-5)
        self.gate_up = nn.Linear(dim, 8 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(
        self, x: Tensor, rel_pos: tuple[Tensor, Tensor], cache: KVCache | None = None
    ) -> Tensor:
        x = x + self.attn(self.attn_norm(x), rel_pos, cache)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def two_calls(attn: MultiheadDiffAttnV2, x: Tensor, rel_pos: tuple[Tensor, Tensor]) -> Tensor:
    """The same attention as unilm's V2 writes it: one ordinary call, then the subtraction."""
    b, s, _ = x.shape
    cos, sin = (table[:s, None] for table in rel_pos)

    def heads(projection: nn.Linear, rotated: bool) -> Tensor:
        y = projection(x).view(b, s, -1, attn.head_dim)
        if rotated:
            even, odd = y[..., ::2], y[..., 1::2]
            y = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        return y.transpose(1, 2)

    q, k, v = heads(attn.q_proj, True), heads(attn.k_proj, True), heads(attn.v_proj, False)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    lam = attn.lambda_proj(x).sigmoid()  # (b, s, heads)
    return attn.out_proj((out[:, :, ::2] - lam[..., None] * out[:, :, 1::2]).flatten(2))


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    dim, heads, kv_heads, seqlen, prompt = 256, 8, 2, 96, 90
    block = Block(dim, heads, kv_heads).to(device, dtype)
    rel_pos = rotary_tables(seqlen, dim // heads, device=device, dtype=dtype)
    x = torch.randn(2, seqlen, dim, device=device, dtype=dtype)

    out = block(x, rel_pos)
    out.float().square().mean().backward()
    gradient = block.attn.lambda_proj.weight.grad
    assert gradient is not None
    print("block", tuple(out.shape), "gradient of λ's projection", tuple(gradient.shape))

    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    with torch.no_grad():
        want, got = two_calls(block.attn, x, rel_pos), block.attn(x, rel_pos)
        difference = ((got - want).norm() / want.norm()).item()
        assert difference < tolerance, difference
        print(f"fused and two maps subtracted in PyTorch agree within {difference:.1e}")

        # The same forward decodes: the prompt at once, then a token at a time.
        cache = block.attn.make_cache(2, seqlen)
        parts = [block(part, rel_pos, cache) for part in x.split([prompt] + [1] * 6, dim=1)]
        difference = ((torch.cat(parts, 1) - out).norm() / out.norm()).item()
        assert difference < tolerance, difference
        print(f"{prompt} tokens at once and 6 from the cache agree within {difference:.1e}")


if __name__ == "__main__":
    main()
