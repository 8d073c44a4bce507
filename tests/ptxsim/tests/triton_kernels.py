"""Kernels in Triton's language; tests/test_triton.py runs what Triton makes of them for sm_90a."""

import triton
import triton.language as tl


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    a, b = a_ptr + rm[:, None] * K + rk[None, :], b_ptr + rk[:, None] * N + rn[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, K, BK):
        acc = tl.dot(tl.load(a), tl.load(b), acc)
        a += BK
        b += BK * N
    tl.store(c_ptr + rm[:, None] * N + rn[None, :], acc)


@triton.jit
def matmul_by_descriptors(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n = tl.program_id(0) * BM, tl.program_id(1) * BN
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        acc = tl.dot(a.load([m, k]), b.load([n, k]).T, acc)
    c.store([m, n], acc.to(tl.bfloat16))


@triton.jit
def attention(q_ptr, k_ptr, v_ptr, o_ptr, S, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    base = tl.program_id(1) * S * D
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn, rd = tl.arange(0, BN), tl.arange(0, D)
    q = tl.load(q_ptr + base + rm[:, None] * D + rd[None, :])
    largest = tl.full((BM,), float("-inf"), tl.float32)
    total, acc = tl.zeros((BM,), tl.float32), tl.zeros((BM, D), tl.float32)
    for j in range(0, (tl.program_id(0) + 1) * BM, BN):
        at = base + (j + rn)[:, None] * D + rd[None, :]
        s = tl.dot(q, tl.trans(tl.load(k_ptr + at))) * scale
        s = tl.where(rm[:, None] >= (j + rn)[None, :], s, float("-inf"))
        top = tl.maximum(largest, tl.max(s, 1))
        p, factor = tl.exp2(s - top[:, None]), tl.exp2(largest - top)
        total = total * factor + tl.sum(p, 1)
        acc = tl.dot(p.to(tl.bfloat16), tl.load(v_ptr + at), acc * factor[:, None])
        largest = top
    tl.store(o_ptr + base + rm[:, None] * D + rd[None, :], acc / total[:, None])
