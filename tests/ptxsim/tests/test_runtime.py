"""Host code through ptxsim.Library: attributes, launches, limits, error codes; printf, assert and trap."""

import ctypes
import subprocess
import sys

import numpy as np
import ptxsim
import pytest
from conftest import CASES, HERE

INVALID_VALUE = 1
MAX_THREADS, SHARED_PER_BLOCK, WARP_SIZE, SHARED_OPT_IN, MAJOR, MINOR = 1, 8, 10, 97, 75, 76    # cudaDeviceAttr


@pytest.fixture(scope="module")
def library(nvcc):
    return ptxsim.Library([str(CASES / "host.cu")])


def fill(library, dev, n=300, smem=512, opt_in=0):
    out = dev.empty((n,), np.float32, "out")
    with dev:
        code = library.launch_fill(ctypes.c_void_p(out.ptr), n, ctypes.c_float(2.5), smem, opt_in)
    return code, out


def test_a_launch_from_host_code(library, device):
    code, out = fill(library, device)
    assert code == 0 and np.array_equal(out.numpy(), 2.5 + np.arange(300, dtype=np.float32))


def test_shared_memory_above_the_limit_needs_the_attribute(library):
    """Above 48 KB the launch fails as on a GPU, or stops as a LaunchLimit; with cudaFuncSetAttribute it runs."""
    dev = ptxsim.Device(profile="sm_80")
    with pytest.raises(ptxsim.LaunchLimit, match="(?i)shared"):
        code, _ = fill(library, dev, smem=64 * 1024)
    code, out = fill(library, dev, smem=64 * 1024, opt_in=1)
    assert code == 0 and out.numpy()[1] == 3.5


def test_the_attribute_beyond_the_device_is_an_error_code(library):
    code, _ = fill(library, ptxsim.Device(profile="sm_86"), smem=120 * 1024, opt_in=1)
    assert code == INVALID_VALUE
    library.text_of.restype = ctypes.c_char_p
    assert library.text_of(0) == b"no error" and b"invalid" in library.text_of(INVALID_VALUE)


@pytest.mark.parametrize("profile, values", [("sm_80", {SHARED_OPT_IN: 166912, MAJOR: 8, MINOR: 0}),
                                             ("sm_86", {SHARED_OPT_IN: 101376, MAJOR: 8, MINOR: 6}),
                                             ("sm_90", {SHARED_OPT_IN: 232448, MAJOR: 9, MINOR: 0}),
                                             ("sm_120", {SHARED_OPT_IN: 101376, MAJOR: 12, MINOR: 0})])
def test_device_attributes(library, profile, values):
    with ptxsim.Device(profile=profile):
        for attribute, value in {MAX_THREADS: 1024, SHARED_PER_BLOCK: 49152, WARP_SIZE: 32, **values}.items():
            assert library.limit_of(attribute) == value


def test_memset(library, device):
    x = device.tensor(np.full(64, 7, np.int32), name="x")
    with device:
        assert library.zero(ctypes.c_void_p(x.ptr), ctypes.c_size_t(128)) == 0
    assert x.numpy().tolist() == [0] * 32 + [7] * 32


def test_an_error_in_a_kernel_passes_through_the_host_code(library, device):
    out = device.empty((100,), np.float32, "short")
    with device, pytest.raises(ptxsim.OutOfBounds, match="short"):
        library.launch_fill(ctypes.c_void_p(out.ptr), 300, ctypes.c_float(1), 512, 0)
    assert fill(library, device)[0] == 0


def test_a_launch_without_a_device(library):
    with pytest.raises((ptxsim.SimError, RuntimeError), match="(?i)device"):
        library.launch_fill(None, 0, ctypes.c_float(1), 512, 0)


# ---- messages ----------------------------------------------------------------------------------


def test_printf(device, compile_case, capfd):
    device.launch(compile_case("messages").kernel("say"), 1, 32, [np.int32(32), np.float32(1.5)])
    assert "lane 3 of 32: 1.500 text c 1099511627776    42|\n" in capfd.readouterr().out


def test_assert_says_what_failed(device, compile_case):
    kernel = compile_case("messages").kernel("check")
    values = np.arange(32, dtype=np.int32)
    device.launch(kernel, 1, 32, [device.tensor(values, name="x")])
    values[9] = 100
    with pytest.raises(ptxsim.Trap, match=r"x\[threadIdx\.x\] < 100") as caught:
        device.launch(kernel, 1, 32, [device.tensor(values, name="x")])
    assert caught.value.lane == 9 and "messages.cu" in str(caught.value)


def test_trap(device, compile_case):
    kernel = compile_case("messages").kernel("stop")
    device.launch(kernel, 1, 64, [np.int32(64)])
    with pytest.raises(ptxsim.Trap) as caught:
        device.launch(kernel, 1, 64, [np.int32(40)])
    assert caught.value.warp == 1 and caught.value.lane == 8 and "trap" in str(caught.value)


def test_memory_may_be_freed_when_the_process_ends(nvcc):
    """After the engine's own objects would be gone: the library's destructors run late."""
    script = f"import ptxsim\nheld = ptxsim.Library([{str(CASES / 'exit.cu')!r}])\nwith ptxsim.Device():\n    assert held.hold(1000) == 0\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
