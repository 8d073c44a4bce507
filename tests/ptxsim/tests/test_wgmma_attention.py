"""Attention with 128 x 128 tiles, written by hand and compiled by nvcc for sm_90a: P from registers, V as it lies."""

import math
import re

import numpy as np
import ptxsim
import pytest
from oracle_half import bf16_bits, bf16_values

ROOM = 16384 + 2 * 49152


@pytest.fixture(scope="module")
def problem():
    rng, rows = np.random.default_rng(0), 256
    q, k, v = (bf16_bits(rng.standard_normal((rows, width))) for width in (64, 64, 128))
    scores = bf16_values(q).astype(np.float64) @ bf16_values(k).astype(np.float64).T / 8
    scores[np.triu_indices(rows, 1)] = -np.inf
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return (q, k, v), weights / weights.sum(1, keepdims=True) @ bf16_values(v).astype(np.float64)


@pytest.fixture(scope="module")
def text(compile_case):
    return compile_case("wgmma_attention", arch="sm_90a").text


def run(text, problem, seed):
    """The relative error, and the counters."""
    inputs, exact = problem
    rows = len(exact)
    kernel = ptxsim.load_ptx(text).kernel("attention")
    ptxsim.set_smem_limit(kernel, ROOM)
    dev = ptxsim.Device("sm_90a", seed=seed)
    out = dev.empty(exact.shape, np.float32, "out")
    tensors = [dev.tensor(x, name) for x, name in zip(inputs, "qkv")]
    counters = dev.launch(kernel, rows // 128, 384, [*tensors, out, np.float32(math.log2(math.e) / 8)], smem=ROOM)
    return np.linalg.norm(out.numpy() - exact) / np.linalg.norm(exact), counters


@pytest.mark.parametrize("seed", range(50))
def test_attention(text, problem, seed):
    error, counters = run(text, problem, seed)
    assert error <= 1.65e-3  # bf16's floor; O itself is fp32
    tiles = 3  # of 128 x 128, under the causal mask
    assert counters["wgmma_flop"] == tiles * 2 * 128 * 128 * (64 + 128)


@pytest.mark.parametrize("units", [-1, 1, 64])
def test_panels_of_v_that_lie_elsewhere(text, problem, units):
    """The leading offset of V's descriptor, from one panel of 64 columns to the next, off by units of 16 bytes."""
    leading = 16384 // 16 << 16 | 1024 // 16 << 32 | 1 << 62
    broken, count = re.subn(rf"\b{leading}\b", str(leading + (units << 16)), text)
    assert count
    for seed in range(3):
        try:
            error, _ = run(broken, problem, seed)
        except ptxsim.SimError:
            continue
        assert error > 1e-2
