"""One call and its gradients in V1's layout: GQA, causal, the headwise norm inside the kernel."""

import torch

from diffattn_cuda import diff_flash_attn_func

batch, seqlen, nheads, nheads_k, d = 2, 256, 4, 2, 64
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16  # or float16; on the CPU also float32 and float64


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)


q = leaf(batch, seqlen, 2 * nheads, d)  # flat head 2h + c is component c of head h
k = leaf(batch, seqlen, 2 * nheads_k, d)
v = leaf(batch, seqlen, nheads_k, 2 * d)
lam = torch.tensor(0.8, device=device, requires_grad=True)  # or (nheads,), (batch, seqlen, nheads)
norm_weight = torch.ones(2 * d, device=device, dtype=dtype, requires_grad=True)
lambda_init = 0.7

# Equivalent to, head by head:
#   rms_norm(softmax(Q1·K1ᵀ/√d)·V − λ·softmax(Q2·K2ᵀ/√d)·V) · norm_weight · (1 − λ_init)
out, lse = diff_flash_attn_func(
    q, k, v, lam, causal=True,
    norm_weight=norm_weight, norm_eps=1e-5, out_scale=1 - lambda_init, return_lse=True,
)  # fmt: skip
out.float().square().sum().backward()

print("out", tuple(out.shape), out.dtype)  # (batch, seqlen, nheads, 2·d)
print("lse", tuple(lse.shape), lse.dtype)  # (2, batch, nheads, seqlen)
for name, tensor in [("q", q), ("k", k), ("v", v), ("lam", lam), ("norm_weight", norm_weight)]:
    assert tensor.grad is not None
    print(f"d{name}", tuple(tensor.grad.shape), tensor.grad.dtype)
