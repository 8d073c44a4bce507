"""Hand-written kernels, compiled by nvcc, against their known answers; then under fifty seeds without a false alarm."""

import numpy as np
import ptxsim
import pytest
from conftest import CASES
from programs import PROGRAMS, run_gemm, transpose
from programs_protocols import PROTOCOLS
from programs_subtle import SUBTLE_PROGRAMS

EVERY_PROGRAM = pytest.mark.parametrize("program", PROGRAMS + SUBTLE_PROGRAMS + PROTOCOLS, ids=lambda f: f.__name__)


@EVERY_PROGRAM
def test_known_answer(program, device, compile_case):
    program(device, compile_case)


@EVERY_PROGRAM
def test_fifty_seeds_raise_no_alarm(program, compile_case):
    for seed in range(1, 51):
        program(ptxsim.Device(profile="sm_80", seed=seed, threads=1 + seed % 2), compile_case)


@pytest.mark.parametrize("profile", ["sm_86", "sm_89", "sm_90", "sm_120"])
def test_code_for_sm_80_runs_on_later_devices(profile, compile_case):
    for program in PROGRAMS:
        program(ptxsim.Device(profile=profile, seed=3), compile_case)


@pytest.mark.parametrize("shape", [(1, 1, 8), (64, 64, 32), (65, 63, 40), (130, 129, 264)], ids=lambda s: "x".join(map(str, s)))
def test_gemm_shapes(shape, device, compile_case):
    run_gemm(device, compile_case("gemm"), *shape)


def test_every_seed_gives_the_same_bits_where_no_atomics_are(compile_case):
    """The order of warps and CTAs cannot show in a kernel without float atomics or ex2."""
    results = set()
    for seed in range(4):
        dev = ptxsim.Device(profile="sm_80", seed=seed)
        x = dev.tensor(np.random.default_rng(0).random((40, 40), np.float32), name="x")
        out = dev.empty((40, 40), np.float32, "out")
        dev.launch(compile_case("transpose").kernel("transpose_padded"), (2, 2), (32, 8), [x, out, np.int32(40), np.int32(40)])
        results.add(out.numpy().tobytes())
    assert len(results) == 1


def test_a_switch_table(device):
    kernel = ptxsim.load_ptx(str(CASES / "brx.ptx")).kernel("table_jump")
    index = np.random.default_rng(0).integers(0, 1000, 32).astype(np.uint32)
    out = device.empty((32,), np.uint32, "out")
    device.launch(kernel, 1, 32, [device.tensor(index, name="index"), out])
    lanes = np.arange(32)
    assert np.array_equal(out.numpy(), np.choose(index % 4, [1000 + 0 * lanes, lanes + 100, lanes << 4, lanes + 100]))


def test_a_conflicting_transpose_is_still_right(device, compile_case):
    transpose(device, compile_case, "transpose_conflicts")
