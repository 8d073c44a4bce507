"""The cases' kernels with their known answers: each function runs a whole problem on a device and asserts the result.

`build` compiles a case by name. What a function returns is the launch's counters.
"""

import math

import numpy as np
import ptxsim
from oracle_half import bf16_bits, bf16_values

INT = np.int32


def kernel(build, case, name):
    """The kernel of exactly this name: kernel() takes a substring, and `reduce` is part of `reduce_tree`."""
    module = build(case)
    assert name in module.kernels
    return module.kernel(name)


def reduce(dev, build):
    x = np.random.default_rng(0).integers(-50, 50, 5000).astype(np.float32)
    total = dev.tensor(np.zeros(1, np.float32), name="sum")
    counters = dev.launch(kernel(build, "reduce", "reduce"), 6, 256, [dev.tensor(x, name="x"), INT(x.size), total])
    assert total.numpy()[0] == x.sum()
    return counters


def reduce_tree(dev, build):
    x = np.random.default_rng(1).integers(-1000, 1000, (5, 256)).astype(INT)
    sums = dev.empty((5,), INT, "sums")
    counters = dev.launch(kernel(build, "reduce", "reduce_tree"), 5, 256, [dev.tensor(x, name="x"), sums])
    assert np.array_equal(sums.numpy(), x.sum(1))
    return counters


def scan(dev, build):
    for n in (1, 31, 32, 33, 200, 512):
        x = np.random.default_rng(n).integers(-9, 10, (3, n)).astype(INT)
        out = dev.empty((3, n), INT, "out")
        counters = dev.launch(kernel(build, "scan", "scan"), 3, 512, [dev.tensor(x, name="x"), out, INT(n)])
        assert np.array_equal(out.numpy(), x.cumsum(1))
    return counters


def histogram(dev, build):
    x = np.random.default_rng(2).integers(0, 256, 3000).astype(np.uint8)
    bins = dev.tensor(np.zeros(64, np.uint32), name="bins")
    counters = dev.launch(kernel(build, "histogram", "histogram"), 4, 128, [dev.tensor(x, name="x"), INT(x.size), bins])
    assert np.array_equal(bins.numpy(), np.bincount(x % 64, minlength=64))
    return counters


def contend(dev, build):
    x = np.random.default_rng(3).permutation(192).astype(np.float64) + 0.5
    largest, ticket = dev.tensor(np.array([-1e300]), name="largest"), dev.tensor(np.zeros(1, np.uint32), name="ticket")
    order = dev.empty((192,), np.uint32, "order")
    counters = dev.launch(kernel(build, "histogram", "contend"), 3, 64, [dev.tensor(x, name="x"), largest, ticket, order])
    assert largest.numpy()[0] == 191.5 and ticket.numpy()[0] == 192
    assert sorted(order.numpy().tolist()) == list(range(192))
    return counters


def transpose(dev, build, name="transpose_padded"):
    x = np.random.default_rng(4).random((70, 45), np.float32)
    out = dev.empty((45, 70), np.float32, "out")
    counters = dev.launch(kernel(build, "transpose", name), (2, 3), (32, 8), [dev.tensor(x, name="in"), out, INT(70), INT(45)])
    assert np.array_equal(out.numpy(), x.T)
    return counters


def gemm_problem(M, N, K, nan_rows=()):
    """Rows of NaN show a stray read of them even where it is multiplied by zero."""
    rng = np.random.default_rng(5)
    a, b = (bf16_bits(rng.standard_normal((rows, K))) for rows in (M, N))
    for row in nan_rows:
        a[row % M], b[row % N] = 0x7FC0, 0x7FC0
    return a, b, bf16_values(a).astype(np.float64) @ bf16_values(b).astype(np.float64).T


def run_gemm(dev, module, M, N, K, nan_rows=()):
    a, b, exact = gemm_problem(M, N, K, nan_rows)
    c = dev.empty((M, N), np.float32, "C")
    function = module.kernel("gemm")
    smem = 3 * 2 * 64 * 40 * 2
    ptxsim.set_smem_limit(function, smem)
    counters = dev.launch(function, ((N + 63) // 64, (M + 63) // 64), 128,
                          [dev.tensor(a, name="A"), dev.tensor(b, name="B"), c, INT(M), INT(N), INT(K)], smem=smem)
    got, nan = c.numpy(), np.isnan(exact)
    assert np.array_equal(np.isnan(got), nan)
    scale = np.sqrt(K) * np.ones_like(exact)
    error = np.where(nan, 0, np.abs(got - exact)) / scale
    assert error.max() < 3e-6, f"element {np.unravel_index(error.argmax(), error.shape)} is off by {error.max():.2e}"
    return counters


def gemm_mutant_check(text):
    """Ragged edges, K of one step, two and five, rows of NaN in every 32: what a mutant of the GEMM has to survive."""
    module = ptxsim.load_ptx(text)
    module.kernel("gemm").program.registers = 128    # ptxas need not see the mutant
    for seed, shape in enumerate([(100, 72, 136), (70, 130, 8), (9, 65, 40)]):
        run_gemm(ptxsim.Device(profile="sm_80", seed=seed, threads=1), module, *shape, nan_rows=(3, 40))


def gemm(dev, build):
    return run_gemm(dev, build("gemm"), 100, 72, 136)


def softmax(dev, build):
    x = np.random.default_rng(6).standard_normal((6, 77)).astype(np.float32) * 4
    y = dev.empty((6, 77), np.float32, "y")
    counters = dev.launch(kernel(build, "softmax", "softmax"), 2, 128, [dev.tensor(x, name="x"), y, INT(6), INT(77)])
    exact = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    exact /= exact.sum(1, keepdims=True)
    assert np.allclose(y.numpy(), exact, rtol=2e-6, atol=0)
    return counters


def attention(dev, build, n=128):
    """A causal head of bf16; the kernel also sets the simulator's speed (bench.py)."""
    rng = np.random.default_rng(8)
    q, k, v = (bf16_bits(rng.standard_normal((n, 64))) for _ in range(3))
    out = dev.empty((n, 64), np.uint16, "out")
    inputs = [dev.tensor(x, name=name) for x, name in ((q, "q"), (k, "k"), (v, "v"))]
    scale_log2 = np.float32(math.log2(math.e) / 8)
    counters = dev.launch(kernel(build, "attention", "attention"), n // 64, 128, [*inputs, out, INT(n), scale_log2])
    q, k, v = (bf16_values(x).astype(np.float64) for x in (q, k, v))
    scores = np.where(np.tri(n, dtype=bool), q @ k.T / 8, -np.inf)
    exact = np.exp(scores - scores.max(1, keepdims=True))
    exact = exact @ v / exact.sum(1, keepdims=True)
    error = np.linalg.norm(bf16_values(out.numpy()) - exact, axis=1)
    assert (error < 0.01 * np.linalg.norm(exact, axis=1)).all()
    return counters


def persistent(dev, build):
    x = np.random.default_rng(7).random((11, 64), np.float32)
    y, counter = dev.empty((11, 64), np.float32, "y"), dev.tensor(np.zeros(1, np.uint32), name="counter")
    done = dev.tensor(np.zeros(11, np.uint32), name="done_by")
    counters = dev.launch(kernel(build, "persistent", "persistent"), 3, 64, [dev.tensor(x, name="x"), y, INT(11), counter, done])
    assert np.array_equal(y.numpy(), 2 * x + np.arange(11, dtype=np.float32)[:, None])
    assert counter.numpy()[0] == 11 + 3 and (done.numpy() == 1).all()
    return counters


def last_block_sums(dev, build):
    x = np.random.default_rng(8).integers(-99, 100, (6, 128)).astype(INT)
    ticket, total = dev.tensor(np.zeros(1, np.uint32), name="ticket"), dev.empty((1,), INT, "total")
    counters = dev.launch(kernel(build, "persistent", "last_block_sums"), 6, 128,
                          [dev.tensor(x, name="x"), dev.empty((6,), INT, "partial"), ticket, total])
    assert total.numpy()[0] == x.sum()
    return counters


def specialise(dev, build):
    for tiles in (1, 2, 3, 7):
        x = np.random.default_rng(tiles).integers(-99, 100, (tiles, 96)).astype(INT)
        out = dev.empty((96,), INT, "out")
        counters = dev.launch(kernel(build, "specialise", "specialise"), 1, 128, [dev.tensor(x, name="x"), out, INT(tiles)])
        assert np.array_equal(out.numpy(), (x[:, ::-1] * np.arange(1, tiles + 1)[:, None]).sum(0))
    return counters


def calls(dev, build):
    x = np.random.default_rng(9).integers(-1000, 1000, 32).astype(INT)
    out, fib = dev.empty((32,), np.float64, "out"), dev.tensor(np.zeros(12, INT), name="fib")
    counters = dev.launch(kernel(build, "control", "calls"), 1, 32, [dev.tensor(x, name="x"), out, fib])
    i = np.arange(32)
    quotient = np.trunc(x / (i + 1)).astype(np.int64)
    rest = x - quotient * (i + 1)
    assert np.array_equal(out.numpy(), quotient * 2.0 + rest.astype(np.float32) - (i - 16) + 2.0**i)
    assert fib.numpy().tolist() == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89]
    return counters


def switch_result(i, x):
    """What `switches` computes for lane i, and what it logs."""
    case, log, r = x[i], 0, 0
    if case == 0:
        r, log = case + 100, 1
    elif case == 1:
        r = sum(x[:i])
    elif case == 2:
        r = log = i.bit_count()
    elif case in (3, 4):
        r, log = ((i ^ 5) + 7, 3) if case == 3 else (7, 0)
    elif case == 5:
        k = i
        while k > 0:
            r, k = 3 * r + x[k], k // 2
    elif case == 6:
        r = -i
    elif case == 7:
        r = [0, 1, 1, 2, 3][i % 5]
    elif case == 8:
        r, log = i * i, -i * i
    else:
        r = -1
    return r, log


def switches(dev, build):
    x = (np.arange(32) * 7 % 11).astype(INT)
    out, log = dev.empty((32,), INT, "out"), dev.tensor(np.zeros(32, INT), name="log")
    counters = dev.launch(kernel(build, "control", "switches"), 1, 32, [dev.tensor(x, name="x"), out, log])
    expected = [switch_result(i, x.tolist()) for i in range(32)]
    assert list(zip(out.numpy().tolist(), log.numpy().tolist())) == expected
    return counters


def collatz(dev, build):
    x = np.arange(1, 65).astype(np.uint32)
    steps = dev.empty((64,), INT, "steps")
    counters = dev.launch(kernel(build, "control", "collatz"), 1, 64, [dev.tensor(x, name="x"), steps])

    def count(v):
        return 0 if v == 1 else 1 + count(3 * v + 1 if v & 1 else v // 2)
    assert steps.numpy().tolist() == [count(v) for v in range(1, 65)]
    return counters


def early_exit_result(i):
    total = 0
    for a in range(10):
        if a == i % 7:
            continue
        for b in range(a + 1):
            if (a + b) % 5 == i % 5:
                break
            total += a * b + 1
        if total > 100 + i:
            return -total
    return total


def early_exits(dev, build):
    out = dev.empty((96,), INT, "out")
    counters = dev.launch(kernel(build, "control", "early_exits"), 1, 96, [out])
    assert out.numpy().tolist() == [early_exit_result(i) for i in range(96)]
    return counters


def local_sort(dev, build):
    x = np.random.default_rng(10).integers(-99, 100, (32, 16)).astype(INT)
    out = dev.empty((32, 16), INT, "out")
    counters = dev.launch(kernel(build, "control", "local_sort"), 1, 32, [dev.tensor(x, name="x"), out, INT(16)])
    assert np.array_equal(out.numpy(), np.sort(x, 1))
    return counters


def bfloats(dev, build):
    x = np.random.default_rng(11).standard_normal((32, 2)).astype(np.float32)
    out, back = dev.empty((32, 2), np.uint16, "out"), dev.empty((32, 2), np.float32, "back")
    counters = dev.launch(kernel(build, "mathlib", "bfloats"), 1, 32, [dev.tensor(x, name="x"), out, back])
    assert np.array_equal(out.numpy(), bf16_bits(x)) and np.array_equal(back.numpy(), 2 * bf16_values(bf16_bits(x)))
    return counters


def halves(dev, build):
    rng = np.random.default_rng(12)
    a, b = (rng.standard_normal((32, 2)).astype(np.float16) for _ in "ab")
    a[5, 1] = np.nan
    out, flags = dev.empty((32, 4, 2), np.float16, "out"), dev.empty((32,), INT, "flags")
    counters = dev.launch(kernel(build, "mathlib", "halves"), 1, 32, [dev.tensor(a, name="x"), dev.tensor(b, name="y"), out, flags])
    da, db = a.astype(np.float64), b.astype(np.float64)
    results = [(da * db + da).astype(np.float16), np.nan_to_num(np.clip((da + db).astype(np.float16), 0, 1)),
               np.fmax(a, b), (da * -db).astype(np.float16)]
    assert np.array_equal(out.numpy(), np.stack(results, 1), equal_nan=True)
    expected = (a < b).all(1) | (a > b)[:, 0] << 1 | np.isnan(a[:, 1]) << 2
    assert np.array_equal(flags.numpy(), expected)
    return counters


def cube_root(v):
    return math.copysign(abs(v) ** (1 / 3), v)


FUNCTIONS = [math.exp, lambda v: math.log(abs(v)), math.sin, math.cos, math.tanh, math.erf, lambda v: abs(v)**0.5,
             lambda v: abs(v)**-0.5, lambda v: abs(v)**float(np.float32(1.7)), math.atan, cube_root, lambda v: math.log1p(abs(v)),
             lambda v: 1 / v, lambda v: math.fmod(v, 3), round, lambda v: 2.0**v]


def functions(dev, build):
    """Twice the errors CUDA documents; 1e5 takes sinf's slow path, which keeps a table in local memory."""
    x = np.array([0.1, -0.7, 1.5, -3.2, 10.25, -20.5, 33.0, 1e-3, -1e-4, 0.5, 2.5, -2.5], np.float32)
    out = dev.empty((12, 16), np.float32, "out")
    counters = dev.launch(kernel(build, "mathlib", "functions"), 1, 32, [dev.tensor(x, name="x"), out, INT(12)])
    exact = np.array([[f(float(v)) for f in FUNCTIONS] for v in x])
    assert np.allclose(out.numpy(), exact, rtol=16 * 2.0**-23, atol=4e-7)
    large = np.array([1e5, -7.5e6, 123456.789], np.float32)
    out = dev.empty((3, 16), np.float32, "out")
    dev.launch(kernel(build, "mathlib", "functions"), 1, 32, [dev.tensor(large, name="x"), out, INT(3)])
    assert np.allclose(out.numpy()[:, 2], np.sin(large.astype(np.float64)), atol=2e-7)
    return counters


def doubles(dev, build):
    x = np.array([0.1, -0.7, 1.5, -3.25, 10.125, 33.0])
    out = dev.empty((6, 6), np.float64, "out")
    counters = dev.launch(kernel(build, "mathlib", "doubles"), 1, 32, [dev.tensor(x, name="x"), out, INT(6)])
    exact = np.stack([np.exp(x), np.log(abs(x)), np.sin(x), np.sqrt(abs(x)), 1 / x, x * x + 3], 1)
    assert np.allclose(out.numpy(), exact, rtol=1e-15, atol=0)
    return counters


PROGRAMS = [reduce, reduce_tree, scan, histogram, contend, transpose, gemm, softmax, attention, persistent, last_block_sums, specialise,
            calls, switches, collatz, early_exits, local_sort, bfloats, halves, functions, doubles]
