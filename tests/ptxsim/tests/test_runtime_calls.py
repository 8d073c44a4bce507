"""What host code asks the CUDA runtime for, beside launches: the answers are the profile's, and what is missing says so by name."""

import ctypes

import numpy as np
import ptxsim
import pytest
from conftest import CASES

INVALID_VALUE, INVALID_PITCH, BAD_DIRECTION, INVALID_DEVICE, NOT_SUPPORTED = 1, 12, 21, 101, 801
ALREADY_REGISTERED, NOT_REGISTERED = 712, 713
UNREGISTERED, HOST, DEVICE, MANAGED = range(4)    # cudaMemoryType
KINDS = {"device": (0, DEVICE), "async": (1, DEVICE), "pinned": (2, HOST), "managed": (3, MANAGED), "pitched": (4, DEVICE)}
PROFILES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")


@pytest.fixture(scope="module")
def library(nvcc):
    return ptxsim.Library([str(CASES / "runtime.cu")])


@pytest.fixture
def inside(device):
    with device:
        yield device


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data if isinstance(array, np.ndarray) else array.ptr)


# ---- the device --------------------------------------------------------------------------------


@pytest.mark.parametrize("profiles", [("sm_80", "sm_90"), ("sm_90", "sm_86", "sm_120")])
def test_each_device_runs_the_ptx_for_it(nvcc, profiles):
    """The newest that it can run, whichever device came first."""
    both = ptxsim.Library([str(CASES / "two_architectures.cu")], flags=["-gencode", "arch=compute_90,code=compute_90"])
    for profile in profiles:
        with ptxsim.Device(profile=profile) as device:
            found = device.empty(1, np.int32)
            assert both.ask_architecture(pointer(found)) == 0
            assert found.numpy()[0] == (800 if profile in ("sm_80", "sm_86") else 900)


@pytest.mark.parametrize("profile", PROFILES)
def test_properties_and_attributes_agree(library, profile):
    values, same, name = (ctypes.c_long * 64)(), (ctypes.c_long * 64)(), ctypes.create_string_buffer(256)
    with ptxsim.Device(profile=profile):
        count = library.properties(values, same, name)
    assert count > 30 and values[:count] == same[:count]
    assert name.value == f"ptxsim {profile}".encode()


@pytest.mark.parametrize("profile, expected", [("sm_80", [8, 0, 108, 49152, 166912, 167936, 1024, 2048, 32, 65536]),
                                               ("sm_90", [9, 0, 132, 49152, 232448, 233472, 1024, 2048, 32, 65536]),
                                               ("sm_120", [12, 0, 170, 49152, 101376, 102400, 1024, 1536, 24, 65536])])
def test_properties_are_those_of_the_profile(library, profile, expected):
    values, same, name = (ctypes.c_long * 64)(), (ctypes.c_long * 64)(), ctypes.create_string_buffer(256)
    with ptxsim.Device(profile=profile):
        library.properties(values, same, name)
    assert values[:len(expected)] == expected


def test_attributes_without_a_name_and_other_devices_are_errors(library, inside):
    value = ctypes.c_int(-5)
    for number in (0, 44, 103, 148, -1):
        assert library.attribute(number, 0, ctypes.byref(value)) == INVALID_VALUE
    assert library.attribute(16, 1, ctypes.byref(value)) == INVALID_DEVICE and value.value == -5


@pytest.mark.parametrize("opt_in", [0, 90000])
@pytest.mark.parametrize("profile", PROFILES)
def test_occupancy_is_that_of_the_toolkits_header(library, profile, opt_in):
    runtime, header, seen = ctypes.c_int(), ctypes.c_int(), set()
    with ptxsim.Device(profile=profile):
        assert library.opt_in(opt_in) == 0
        for threads in (1, 32, 33, 96, 160, 256, 257, 1024):
            for dynamic in (0, 1, 1000, 9000, 20000, 40000, 48 * 1024 - 256, 48 * 1024, 80000, 90000, 90001):
                code = library.occupancy(threads, ctypes.c_long(dynamic), ctypes.byref(runtime), ctypes.byref(header))
                assert code == 0 and runtime.value == header.value, (threads, dynamic, runtime.value, header.value)
                seen.add(runtime.value)
        assert library.opt_in(0) == 0
    assert 0 in seen and len(seen) > 5


def test_the_shared_memory_left_for_a_number_of_blocks(library):
    bytes_left = ctypes.c_long()
    with ptxsim.Device(profile="sm_80"):
        assert library.available_shared(1, 256, ctypes.byref(bytes_left)) == 0 and bytes_left.value == 166912 - 256
        assert library.available_shared(4, 256, ctypes.byref(bytes_left)) == 0 and bytes_left.value == 167936 // 4 - 1024 - 256
        assert library.available_shared(9, 256, ctypes.byref(bytes_left)) == INVALID_VALUE    # 2048 threads are 8 blocks


def test_attributes_of_a_kernel(library):
    out = (ctypes.c_long * 9)()
    with ptxsim.Device(profile="sm_90"):
        assert library.function_attributes(out) == 0
    assert out[:8] == [256, 0, 0, 256, 80, 90, 49152 - 256, 0] and 0 < out[8] < 64


# ---- copies ------------------------------------------------------------------------------------


def test_copies_and_fills_of_rows(library, inside):
    source = np.arange(48, dtype=np.uint8).reshape(6, 8)
    target = inside.empty((6, 5), np.uint8, "target")
    assert library.copy_2d(pointer(target), 5, pointer(source), 8, 3, 6) == 0
    assert np.array_equal(target.numpy()[:, :3], source[:, :3])
    assert target.undefined().reshape(6, 5)[:, 3:].all() and target.undefined_bytes == 12    # between the rows nothing was written
    assert library.fill_2d(pointer(target), 5, 7, 5, 2) == 0 and (target.numpy()[:2] == 7).all() and target.undefined_bytes == 8
    assert library.copy_2d(pointer(target), 2, pointer(source), 8, 3, 6) == INVALID_PITCH
    assert library.copy_1d(pointer(target), pointer(source), 1, 5) == BAD_DIRECTION


def test_a_copy_of_undefined_memory_is_undefined(library, inside):
    source, target = inside.empty((8,), np.uint8, "source"), inside.tensor(np.zeros(8, np.uint8), "target")
    other = inside.empty((8,), np.uint8, "other")
    assert library.fill_2d(pointer(source), 8, 1, 3, 1) == 0
    assert library.copy_1d(pointer(other), pointer(source), 8, 3) == 0
    assert other.undefined().tolist() == [False] * 3 + [True] * 5
    assert library.copy_1d(pointer(other), pointer(target), 8, 3) == 0 and other.undefined_bytes == 0


def test_a_copy_past_the_end_is_out_of_bounds(library, inside):
    source, target = np.zeros(64, np.uint8), inside.tensor(np.zeros(32, np.uint8), "target")
    with pytest.raises(ptxsim.OutOfBounds, match="cudaMemcpyAsync writes 33 bytes .* byte 0 of target, which has 32"):
        library.copy_1d(pointer(target), pointer(source), 33, 1)
    with pytest.raises(ptxsim.OutOfBounds, match="cudaMemcpy2D reads 16 bytes .* byte 24 of target"):
        library.copy_2d(pointer(source), 16, ctypes.c_void_p(target.ptr + 8), 16, 16, 2)
    fixed = np.zeros(8, np.uint8)
    inside.register(fixed.ctypes.data, 8, "input", writable=False)
    with pytest.raises(ptxsim.OutOfBounds, match="input, which is read-only"):
        library.fill_2d(pointer(fixed), 8, 1, 8, 1)
    inside.unregister(fixed.ctypes.data)


def test_module_variables(library, inside):
    new, back = np.array([10, 20, 30, 40], np.int32), np.zeros(2, np.int32)
    assert library.symbols(pointer(new), pointer(back), ctypes.c_size_t(4)) == 0 and back.tolist() == [20, 30]
    assert library.symbols(pointer(new), pointer(back), ctypes.c_size_t(12)) == INVALID_VALUE
    x = inside.tensor(np.zeros(8, np.int32), "x")
    assert library.add(pointer(x), 8) == 0 and x.numpy().tolist() == [10, 20, 30, 40] * 2


# ---- memory ------------------------------------------------------------------------------------


def allocated(library, kind, nbytes):
    out = ctypes.c_void_p()
    assert library.allocate(kind, ctypes.c_size_t(nbytes), ctypes.byref(out)) == 0
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_every_kind(library, inside, kind):
    number, cuda_type = KINDS[kind]
    p = allocated(library, number, 32)
    assert library.type_of(p) == cuda_type and library.type_of(ctypes.c_void_p(p.value + 31)) == cuda_type
    if cuda_type == DEVICE:
        with pytest.raises(ptxsim.Undefined):    # nobody wrote it
            library.add(p, 8)
        assert library.fill_2d(p, 32, 0, 32, 1) == 0
    else:
        ctypes.memset(p, 0, 32)    # the host may, unseen
    assert library.add(p, 8) == 0 and ctypes.cast(p, ctypes.POINTER(ctypes.c_int))[5] > 0
    wrong = 2 if cuda_type != HOST else 0
    assert library.release(wrong, p) == INVALID_VALUE and library.release(number, p) == 0
    assert library.type_of(p) == UNREGISTERED and library.release(number, p) == INVALID_VALUE


def test_a_managed_variable_is_the_hosts_and_the_kernels(library, inside):
    out = (ctypes.c_int * 4)()
    assert library.managed_variable(out) == 0 and list(out) == [11, 60, 13, 14]


def test_memory_in_use_is_counted(library, inside):
    before = library.free_memory()
    p = allocated(library, 0, 1000)
    assert library.free_memory() - before == 1000
    library.release(0, p)
    assert library.free_memory() == before


def test_registered_host_memory(library, inside):
    x = np.zeros(8, np.int32)
    with pytest.raises(ptxsim.OutOfBounds):
        library.add(pointer(x), 8)
    assert library.register_host(pointer(x), ctypes.c_size_t(32)) == 0 and library.type_of(pointer(x)) == HOST
    assert library.register_host(pointer(x), ctypes.c_size_t(32)) == ALREADY_REGISTERED
    assert library.add(pointer(x), 8) == 0 and (x > 0).all()
    assert library.unregister_host(pointer(x)) == 0 and library.unregister_host(pointer(x)) == NOT_REGISTERED


def test_streams_and_events(library, inside):
    ms, calls = ctypes.c_float(-1), ctypes.c_int(0)
    assert library.streams(ctypes.byref(ms), ctypes.byref(calls)) == 0
    assert 0 <= ms.value < 1000 and calls.value == 1


# ---- what is refused ---------------------------------------------------------------------------

REFUSED = {"make_graph": "cudaGraphCreate",
           "entry_point": 'cudaGetDriverEntryPointByVersion\\("cuTensorMapEncodeIm2col"\\)',
           "cluster_attribute": "cudaFuncSetAttribute\\(11\\), a required cluster dimension"}


@pytest.mark.parametrize("call", REFUSED)
def test_a_refused_call_is_named(library, inside, call):
    with pytest.raises(ptxsim.Unsupported, match=f"calls {REFUSED[call]}"):
        getattr(library, call)()
    x = inside.tensor(np.zeros(8, np.int32), "x")
    assert library.add(pointer(x), 8) == 0    # and the process goes on


def test_the_default_stream_cannot_be_captured(library, inside):
    unsupported = 900
    assert library.begin_capture() == unsupported


def test_the_host_sees_a_code_too(library, inside):
    """Host code may handle the error; it is raised all the same, because the call had no effect."""
    raw = library._library.make_graph
    assert raw() == NOT_SUPPORTED
    with pytest.raises(ptxsim.Unsupported, match="cudaGraphCreate"):
        library.free_memory()


@pytest.mark.parametrize("blocks, attribute, refused", [(1, 4, ""), (2, 11, "PreferredClusterDimension"),
                                                        (1, 6, ""), (1, 7, "ProgrammaticEvent"), (1, 2, "")])
def test_launch_attributes(library, inside, blocks, attribute, refused):
    x = inside.tensor(np.zeros(8, np.int32), "x")
    if refused:
        with pytest.raises(ptxsim.Unsupported, match=f"cudaLaunchKernelExC with cudaLaunchAttribute{refused}"):
            library.launch_cluster(pointer(x), 8, blocks, attribute)
    else:
        assert library.launch_cluster(pointer(x), 8, blocks, attribute) == 0 and (x.numpy() > 0).all()
