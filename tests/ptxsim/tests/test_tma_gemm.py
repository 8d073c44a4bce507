"""A GEMM of TMA, wgmma and a producer warpgroup: right under fifty seeds, and wrong in every one of its planted faults."""

import re

import numpy as np
import ptxsim
import pytest
from oracle_half import bf16_bits, bf16_values

M, N, K = 128, 128, 256
ROOM = 2 * 32768
RIGHT, WRONG = "right", "wrong"


@pytest.fixture(scope="module")
def text(compile_case):
    return compile_case("tma_gemm", arch="sm_90a").text


def run(text, seed, m=M, n=N, swizzle=128, box_rows=128):
    rng = np.random.default_rng(0)
    a, b = bf16_bits(rng.standard_normal((m, K))), bf16_bits(rng.standard_normal((n, K)))
    kernel = ptxsim.load_ptx(text).kernel("tma_gemm")
    ptxsim.set_smem_limit(kernel, ROOM)
    kernel.program.registers = 168
    dev = ptxsim.Device("sm_90a", seed=seed, threads=1)
    tensors = dev.tensor(a, "a"), dev.tensor(b, "b"), dev.empty((m, n), np.float32, "c")
    maps = [dev.tensor_map(t, "BFLOAT16", [K, rows], [2 * K], [64, height], swizzle=swizzle)
            for t, rows, height in ((tensors[0], m, box_rows), (tensors[1], n, 128))]
    maps.append(dev.tensor_map(tensors[2], "FLOAT32", [n, m], [4 * n], [128, 128]))
    grid = -(-m // 128), -(-n // 128)
    counters = dev.launch(kernel, grid, 384, [*maps, np.int32(K)], smem=ROOM)
    exact = bf16_values(a).astype(np.float64) @ bf16_values(b).astype(np.float64).T
    return RIGHT if np.abs(tensors[2].numpy() - exact).max() < 1e-3 else WRONG, counters


@pytest.mark.parametrize("seed", range(50))
def test_the_gemm_is_right_under_every_seed(text, seed):
    result, counters = run(text, seed)
    assert result == RIGHT
    assert counters["bulk_shared_bytes"] == (M + N) * K * 2 and counters["bulk_stored_bytes"] == M * N * 4


def test_rows_and_columns_past_the_edge_are_filled_and_not_stored(text):
    assert run(text, 0, m=200, n=132)[0] == RIGHT


def changed(text, old, new):
    at = text.index(".entry tma_gemm")
    found = re.search(old, text[at:])
    assert found, old
    return text[: at + found.start()] + found.expand(new) + text[at + found.end() :]


FAULTS = {
    "expects 16 bytes too many": (r"(expect_tx\S+ _, \[\S+\], )(%\w+|\d+);", r"\g<1>32784;", (ptxsim.Deadlock, ptxsim.Race)),
    "expects 16 bytes too few": (r"(expect_tx\S+ _, \[\S+\], )(%\w+|\d+);", r"\g<1>32752;", (ptxsim.Deadlock, ptxsim.Race)),
    "fence.proxy.async dropped before the store": (r"fence\.proxy\.async\.shared::cta;", "", ptxsim.Race),
    "wait_group.read dropped": (r"cp\.async\.bulk\.wait_group\.read 0;", "", ptxsim.Race),
    "fence.mbarrier_init dropped": (r"fence\.mbarrier_init\.release\.cluster;", "", ptxsim.Race),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_synchronisation_is_an_error_under_every_seed(text, name):
    old, new, errors = FAULTS[name]
    faulty = changed(text, old, new)
    for seed in range(12):
        with pytest.raises(errors):
            run(faulty, seed)


def test_the_map_with_another_swizzle(text):
    """Rows of 128 bytes do not fit a swizzle of 64: the encoder says so. Without a swizzle the product is wrong."""
    with pytest.raises(ptxsim.BadProgram, match="swizzle takes at most 64"):
        run(text, 0, swizzle=64)
    assert run(text, 0, swizzle=0)[0] == WRONG


@pytest.mark.parametrize("rows", [120, 136])
def test_the_map_with_8_rows_more_or_fewer(text, rows):
    for seed in range(12):
        with pytest.raises((ptxsim.Deadlock, ptxsim.Race), match="mbarrier|bulk copy"):
            run(text, seed, box_rows=rows)
