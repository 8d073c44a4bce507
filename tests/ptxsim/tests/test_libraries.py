"""Kernels nobody here wrote, compiled unchanged from the headers of nvidia-cutlass, host code included.

A GEMM of CUTLASS 2.x, and the attention of its example 41 (xFormers' memory-efficient attention), forward and backward.
"""

import ctypes

import foreign
import numpy as np
import ptxsim
import pytest
from conftest import CASES
from oracle_half import bf16_bits, bf16_values

PROBLEM = [("pointers", ctypes.c_void_p * 5)] + [(n, ctypes.c_int) for n in ("batch", "heads", "queries", "keys", "width")]


class Problem(ctypes.Structure):
    _fields_ = [*PROBLEM, ("scale", ctypes.c_float), ("causal", ctypes.c_int)]


def cutlass_flags():
    folders = [*foreign.cutlass_folders(), foreign.cutlass() / "examples/41_fused_multi_head_attention", foreign.STAND_INS]
    return ["-std=c++17", *(f"-I{folder}" for folder in folders)]


@pytest.fixture(scope="module")
def gemm(nvcc):
    return ptxsim.Library([str(CASES / "cutlass_gemm.cu")], flags=cutlass_flags()).cutlass_gemm


@pytest.fixture(scope="module")
def attention(nvcc):
    library = ptxsim.Library([str(CASES / "cutlass_fmha.cu")], flags=cutlass_flags())
    library.fmha_workspace.restype = ctypes.c_size_t
    return library


def pointer(tensor):
    return ctypes.c_void_p(tensor.ptr)


@pytest.mark.parametrize("M, N, K", [(64, 64, 32), (96, 136, 200), (1, 8, 8)], ids=lambda v: str(v))
def test_cutlass_gemm(gemm, M, N, K):
    rng = np.random.default_rng(0)
    a, b, c = bf16_bits(rng.standard_normal((M, K))), bf16_bits(rng.standard_normal((N, K))), rng.random((M, N), np.float32)
    exact = 1.5 * (bf16_values(a).astype(np.float64) @ bf16_values(b).astype(np.float64).T) + 0.5 * c
    for seed in range(3):
        dev = ptxsim.Device(profile="sm_80", seed=seed)
        tensors = [dev.tensor(x, name=n) for n, x in (("A", a), ("B", b), ("C", c))]
        out = tensors[2]
        with dev:
            code = gemm(*map(pointer, tensors), M, N, K, ctypes.c_float(1.5), ctypes.c_float(0.5))
        assert code == 0 and np.allclose(out.numpy(), exact, rtol=1e-5, atol=1e-5 * K**0.5)


def heads_first(x):
    return x.astype(np.float64).transpose(0, 2, 1, 3)


def exact_attention(q, k, v, scale, causal):
    """P, O and LSE in fp64, as [batch, heads, ...]."""
    q, k, v = map(heads_first, (q, k, v))
    scores = scale * q @ k.transpose(0, 1, 3, 2)
    if causal:
        rows, keys = scores.shape[2:]
        scores[..., np.arange(keys) > np.arange(rows)[:, None] + keys - rows] = -np.inf
    largest = scores.max(-1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(-1, keepdims=True)
    return weights / total, weights / total @ v, (largest + np.log(total))[..., 0]


def relative(got, exact):
    return np.linalg.norm(got.astype(np.float64) - exact) / np.linalg.norm(exact)


class Attention:
    """One problem: its inputs, its exact results, and its tensors on a device."""

    def __init__(self, causal, seed=0, batch=1, heads=2, queries=70, keys=100, width=64):
        rng = np.random.default_rng(1)
        shape = {"q": queries, "k": keys, "v": keys, "dout": queries}
        self.host = {n: rng.standard_normal((batch, rows, heads, width)).astype(np.float16) for n, rows in shape.items()}
        self.scale, self.causal = width**-0.5, causal
        self.p, self.out, self.lse = exact_attention(*(self.host[n] for n in "qkv"), self.scale, causal)
        self.dev = ptxsim.Device(profile="sm_80", seed=seed)
        self.on = {n: self.dev.tensor(x, name=n) for n, x in self.host.items()}
        self.padded = (queries + 31) // 32 * 32
        self.on["out"] = self.dev.empty((batch, queries, heads, width), np.float16, "out")
        self.on["lse"] = self.dev.empty((batch, heads, self.padded), np.float32, "lse")
        self.problem = Problem((ctypes.c_void_p * 5)(*(self.on[n].ptr for n in ("q", "k", "v", "out", "lse"))), batch, heads,
                               queries, keys, width, self.scale, causal)

    def forward(self, library):
        with self.dev:
            assert library.fmha_forward(ctypes.byref(self.problem)) == 0
        return heads_first(self.on["out"].numpy()), self.on["lse"].numpy()[..., :self.out.shape[2]]

    def backward(self, library):
        """dQ, dK and dV; delta = ⟨dO, O⟩ is computed by the caller, as xFormers does."""
        dout = heads_first(self.host["dout"])
        delta = np.zeros(self.on["lse"].numpy().shape, np.float32)
        delta[..., :dout.shape[2]] = (dout * heads_first(self.on["out"].numpy())).sum(-1)
        grads = {n: self.dev.empty(self.host[n].shape, np.float16, "d" + n) for n in "qkv"}
        size = library.fmha_workspace(ctypes.byref(self.problem))
        workspace = self.dev.tensor(np.zeros(max(size, 16), np.uint8), name="workspace")
        tensors = [self.on["dout"], self.dev.tensor(delta, name="delta"), *grads.values(), workspace]
        with self.dev:
            assert library.fmha_backward(ctypes.byref(self.problem), *map(pointer, tensors)) == 0
        return [heads_first(g.numpy()) for g in grads.values()]

    def exact_gradients(self):
        q, k, v, dout = (heads_first(self.host[n]) for n in ("q", "k", "v", "dout"))
        dp = dout @ v.transpose(0, 1, 3, 2)
        ds = self.p * (dp - (dout * self.out).sum(-1, keepdims=True))
        transposed = lambda x: x.transpose(0, 1, 3, 2)
        return self.scale * ds @ k, self.scale * transposed(ds) @ q, transposed(self.p) @ dout


@pytest.mark.parametrize("causal", [0, 1], ids=["full", "causal"])
def test_xformers_attention(attention, causal):
    for seed in range(2):
        problem = Attention(causal, seed)
        out, lse = problem.forward(attention)
        assert relative(out, problem.out) < 1e-3 and relative(lse, problem.lse) < 1e-5
        for name, got, exact in zip("qkv", problem.backward(attention), problem.exact_gradients()):
            assert relative(got, exact) < 2e-3, f"d{name}: {relative(got, exact):.2e}"


def test_a_tensor_of_xformers_that_is_too_short_is_caught(attention):
    problem = Attention(0)
    problem.problem.keys += 1
    with pytest.raises(ptxsim.OutOfBounds, match="k|v"):
        problem.forward(attention)
