"""Runs cases/wgmma_gemm.cu, or a change of its PTX, and says whether the product is right."""

import numpy as np
import ptxsim
from oracle_half import bf16_bits, bf16_values

M, N, K = 128, 128, 320
ROOM = 2 * 32768


def run(text, seed, checks=None, registers=168):
    rng = np.random.default_rng(0)
    a, b = bf16_bits(rng.standard_normal((M, K))), bf16_bits(rng.standard_normal((N, K)))
    kernel = ptxsim.load_ptx(text).kernel("wgmma_gemm")
    ptxsim.set_smem_limit(kernel, ROOM)
    kernel.program.registers = registers
    dev = ptxsim.Device("sm_90a", seed=seed, threads=1, checks=checks)
    c = dev.empty((M, N), np.float32, "c")
    counters = dev.launch(kernel, 1, 384, [dev.tensor(a, "a"), dev.tensor(b, "b"), c, np.int32(N), np.int32(K)], smem=ROOM)
    exact = bf16_values(a).astype(np.float64) @ bf16_values(b).astype(np.float64).T
    return np.abs(c.numpy() - exact).max() < 1e-3, counters
