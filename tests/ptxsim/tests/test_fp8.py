"""__nv_fp8 compiled by nvcc: the instructions of sm_89 give what NVIDIA's arithmetic for earlier architectures gives."""

import numpy as np
import ptxsim
import pytest
from exact_floats import FORMATS, decode

KINDS = ("e4m3", "e5m2")


def inputs():
    """Every half as a float, and random floats of like magnitude."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    rng = np.random.default_rng(0)
    return np.concatenate([halves, (rng.standard_normal(4096) * np.exp2(rng.integers(-20, 20, 4096))).astype(np.float32)])


def launched(compile_case, arch, name, source, shape, dtype, *more):
    dev = ptxsim.Device(profile=arch)
    out = dev.empty(shape, dtype, "out")
    block = min(256, shape[0])
    module = compile_case("fp8", arch=arch)
    assert ("e4m3x2" in module.text) == (arch == "sm_89")
    dev.launch(module.kernel(name), -(-shape[0] // block), block, [dev.tensor(source, "in"), out, *more])
    return out.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_narrowing_is_that_of_the_headers_arithmetic(compile_case, kind):
    x = inputs()
    by_instruction, by_arithmetic = (launched(compile_case, arch, f"narrow_{kind}", x, x.shape, np.uint8, np.int32(x.size))
                                     for arch in ("sm_89", "sm_80"))
    number = ~np.isnan(x)
    assert np.array_equal(by_instruction[number], by_arithmetic[number])
    for bits in {*by_instruction[~number], *by_arithmetic[~number]}:
        assert np.isnan(float(decode(FORMATS[kind], int(bits))))


@pytest.mark.parametrize("arch", ["sm_80", "sm_89"])
@pytest.mark.parametrize("kind", KINDS)
def test_widening_gives_every_value(compile_case, kind, arch):
    exact = np.array([float(decode(FORMATS[kind], bits)) for bits in range(256)], np.float32)
    got = launched(compile_case, arch, f"widen_{kind}", np.arange(256, dtype=np.uint8), (256,), np.float32)
    assert np.array_equal(got, exact, equal_nan=True) and np.array_equal(np.signbit(got[:128]), np.zeros(128, bool))


def test_the_first_of_a_pair_is_the_lower_byte(compile_case):
    got = launched(compile_case, "sm_89", "narrow_pair_e4m3", np.array([[1, -2]] * 32, np.float32), (32,), np.uint16)
    assert (got == 0xC038).all()
