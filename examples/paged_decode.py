"""Decoding over a paged KV cache: 16-token pages of one pool, handed out as sequences grow."""

import torch

from diffattn_cuda import diff_flash_attn_func, diff_flash_attn_with_kvcache
from diffattn_cuda.nn import rotary_tables
from diffattn_cuda.reference import apply_rotary

batch, nheads, nheads_k, d, page, prompt, steps = 2, 8, 2, 64, 16, 30, 12
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype, lam = torch.bfloat16, 0.8
cos, sin = rotary_tables(prompt + steps, d, device=device, dtype=dtype)

# The pool may hold anything before: slots that no sequence has filled are never read.
pool = range(16)
k_cache = torch.full((len(pool), page, 2 * nheads_k, d), float("nan"), device=device, dtype=dtype)
v_cache = torch.full((len(pool), page, nheads_k, 2 * d), float("nan"), device=device, dtype=dtype)
free = list(pool)[::-1]
block_table = torch.zeros(batch, 3, dtype=torch.int32, device=device)  # 3 pages = 48 tokens at most
cache_seqlens = torch.zeros(batch, dtype=torch.int32, device=device)


def heads(seqlen: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a model's projections would give for the next seqlen tokens."""
    shapes = (2 * nheads, d), (2 * nheads_k, d), (nheads_k, 2 * d)
    q, k, v = (torch.randn(batch, seqlen, *s, device=device, dtype=dtype) for s in shapes)
    return q, k, v


history, outs, length = [], [], 0
for new in [prompt] + [1] * steps:  # the prompt in one call, then token by token
    for i in range(-(-length // page), -(-(length + new) // page)):
        block_table[:, i] = torch.tensor([free.pop() for _ in range(batch)])
    q, k, v = heads(new)
    out = diff_flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        lam,
        k,
        v,
        cos,
        sin,
        cache_seqlens,
        block_table=block_table,
        causal=True,
    )
    cache_seqlens += new
    length += new
    history.append((q, k, v))
    outs.append(out)

q, k, v = (torch.cat(parts, 1) for parts in zip(*history, strict=True))
full = diff_flash_attn_func(
    apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v, lam, causal=True
)
difference = (torch.cat(outs, 1) - full).abs().max().item()
assert difference < 0.05, difference
print(f"{length} tokens, {batch} sequences, block_table {block_table.tolist()}")
print(f"decoded step by step and computed at once agree within {difference:.1e}")
