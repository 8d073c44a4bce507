"""Code that Triton makes for Hopper: wgmma fed by cp.async and by TMA, attention with P in registers."""

import numpy as np
import ptxsim
import pytest
from oracle_half import bf16_bits, bf16_values

triton = pytest.importorskip("triton", reason="triton is not installed: it comes with torch for CUDA, or from PyPI")
import triton_kernels  # noqa: E402 (needs triton)
from triton.backends.compiler import GPUTarget  # noqa: E402

SEEDS = range(4)
TILE = dict(BM=128, BN=128, BK=64)


def compiled(function, signature, constants, warps, stages, divisible=()):
    """The PTX and its bytes of shared memory. `divisible`: integers that are multiples of 16, as pointers are."""
    names = list(signature)
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in divisible]
    whole = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = triton.compiler.ASTSource(function, whole, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=warps, num_stages=stages))
    assert "wgmma.mma_async" in made.asm["ptx"]
    return ptxsim.load_ptx(made.asm["ptx"]), made.metadata.shared


def normal(*shape):
    return bf16_bits(np.random.default_rng(sum(shape)).standard_normal(shape))


def wide(x):
    return bf16_values(x).astype(np.float64)


def run(made, dev, grid, warps, arguments):
    module, shared = made
    (name,) = module.kernels
    kernel = module.kernel(name)
    ptxsim.set_smem_limit(kernel, shared)
    return dev.launch(kernel, grid, 32 * warps, [*arguments, np.uint64(0), np.uint64(0)], smem=shared)  # no scratch memory


@pytest.mark.parametrize("warps, stages", [(4, 3), (8, 3), (4, 1)])
def test_matmul(warps, stages):
    m, n, k = 128, 256, 256
    made = compiled(triton_kernels.matmul, dict(a_ptr="*bf16", b_ptr="*bf16", c_ptr="*fp32", N="i32", K="i32"), TILE, warps, stages, "NK")
    a, b = normal(m, k), normal(k, n)
    for seed in SEEDS:
        dev = ptxsim.Device("sm_90a", seed=seed)
        c = dev.empty((m, n), np.float32, "c")
        counters = run(made, dev, (m // 128, n // 128), warps, [dev.tensor(a, "a"), dev.tensor(b, "b"), c, np.int32(n), np.int32(k)])
        assert np.abs(c.numpy() - wide(a) @ wide(b)).max() < 1e-3
        assert counters["wgmma_flop"] == 2 * m * n * k


@pytest.mark.parametrize("warps, stages", [(4, 3), (8, 4)])
def test_matmul_by_descriptors(warps, stages):
    """Boxes over the edges of A, B and C. Triton has a barrier of the CTA after mbarrier.init, and no fence."""
    m, n, k = 200, 136, 328
    block = "tensordesc<bf16[128, {}]>"
    signature = dict(a=block.format(64), b=block.format(64), c=block.format(128), K="i32")
    made = compiled(triton_kernels.matmul_by_descriptors, signature, TILE, warps, stages)
    a, b = normal(m, k), normal(n, k)
    for seed in SEEDS:
        dev = ptxsim.Device("sm_90a", seed=seed, checks={"init_fence": False})
        on_a, on_b, c = dev.tensor(a, "a"), dev.tensor(b, "b"), dev.empty((m, n), np.uint16, "c")

        def descriptor(tensor, rows, columns, dev=dev):
            """As Triton's launcher passes it: a map, the sizes and the strides."""
            box = dev.tensor_map(tensor, "BFLOAT16", [columns, rows], [2 * columns], [64, 128], swizzle=128)
            return [box, np.int32(rows), np.int32(columns), np.int64(columns), np.int64(1)]

        arguments = [*descriptor(on_a, m, k), *descriptor(on_b, n, k), *descriptor(c, m, n), np.int32(k)]
        counters = run(made, dev, (2, 2), warps, arguments)
        exact = wide(a) @ wide(b).T
        assert np.linalg.norm(wide(c.numpy()) - exact) < 2e-3 * np.linalg.norm(exact)  # C is bf16
        assert counters["bulk_stored_bytes"] == 2 * m * n and counters["async_bytes"] == 0


@pytest.mark.parametrize("warps, stages", [(4, 3), (8, 2)])
def test_attention(warps, stages):
    heads, rows, width = 2, 256, 64
    pointers = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*bf16")
    made = compiled(triton_kernels.attention, {**pointers, "o_ptr": "*fp32", "S": "i32", "scale": "fp32"}, dict(BM=128, BN=64, D=width),
                    warps, stages, "S")  # fmt: skip
    q, k, v = (bf16_bits(np.random.default_rng(i).standard_normal((heads, rows, width))) for i in range(3))
    scores = wide(q) @ wide(k).transpose(0, 2, 1) / 8
    scores[:, np.triu(np.ones((rows, rows), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = weights / weights.sum(-1, keepdims=True) @ wide(v)
    for seed in SEEDS:
        dev = ptxsim.Device("sm_90a", seed=seed)
        out = dev.empty(exact.shape, np.float32, "out")
        tensors = [dev.tensor(x, name) for x, name in zip((q, k, v), "qkv")]
        run(made, dev, (rows // 128, heads), warps, [*tensors, out, np.int32(rows), np.float32(np.log2(np.e) / 8)])
        assert np.linalg.norm(out.numpy() - exact) < 2e-3 * np.linalg.norm(exact)  # P is bf16, O is fp32
