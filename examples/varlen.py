"""Sequences of different lengths packed end to end: no padding, and nothing computed on it."""

import torch

from diffattn_cuda import diff_flash_attn_func, diff_flash_attn_varlen_func

nheads, d = 4, 64
lengths = [300, 17, 128, 1]
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16

total = sum(lengths)
q = torch.randn(total, 2 * nheads, d, device=device, dtype=dtype)
k = torch.randn(total, 2 * nheads, d, device=device, dtype=dtype)
v = torch.randn(total, nheads, 2 * d, device=device, dtype=dtype)
lam = torch.rand(total, nheads, device=device)  # a λ for every token and head, as in V2

# Sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1].
ends = torch.tensor(lengths).cumsum(0)
cu_seqlens = torch.cat([torch.zeros(1, dtype=ends.dtype), ends]).to(device, torch.int32)

out = diff_flash_attn_varlen_func(
    q, k, v, lam, cu_seqlens, cu_seqlens, max(lengths), max(lengths), causal=True
)
print("packed", lengths, "->", tuple(out.shape))  # (total, nheads, 2·d)

start = 0
for length in lengths:
    rows = slice(start, start + length)
    alone = diff_flash_attn_func(
        q[None, rows], k[None, rows], v[None, rows], lam[None, rows], causal=True
    )
    difference = (out[rows] - alone[0]).abs().max().item()
    assert difference < 0.02, difference
    print(f"rows {start:3d} to {start + length:3d}: alone the same within {difference:.1e}")
    start += length
