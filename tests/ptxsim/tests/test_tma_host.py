"""Hopper's part of the CUDA runtime for host code: tensor maps, clusters, programmatic launches."""

import ctypes

import numpy as np
import ptxsim
import pytest
from conftest import CASES
from ptxsim.device import raise_pending

INVALID_VALUE, INVALID_CLUSTER = 1, 912


@pytest.fixture(scope="module")
def library(nvcc):
    return ptxsim.Library([str(CASES / "tma_host.cu")], arch="90")


@pytest.fixture
def inside():
    with ptxsim.Device(profile="sm_90", threads=1) as device:
        yield device


def pointer(tensor):
    return ctypes.c_void_p(tensor.ptr)


@pytest.mark.parametrize("rows", [8, 24, 19])
def test_a_map_through_the_entry_point(library, inside, rows):
    x = np.arange(rows * 32, dtype=np.int32).reshape(rows, 32)
    whole = -(-rows // 8) * 8
    source, out = inside.tensor(x, "x"), inside.empty((whole, 32), np.int32, "out")
    assert library.copy_rows(pointer(source), pointer(out), rows) == 0
    np.testing.assert_array_equal(out.numpy(), np.pad(x, ((0, whole - rows), (0, 0))))


@pytest.mark.parametrize("constant", [0, 1], ids=["global", "constant"])
def test_a_map_in_memory(library, inside, constant):
    source, out = inside.tensor(np.arange(256, dtype=np.int32), "x"), inside.empty((256,), np.int32, "out")
    assert library.copy_by_place(pointer(source), pointer(out), constant) == 0
    np.testing.assert_array_equal(out.numpy(), np.arange(256))


def test_a_rule_that_is_broken_is_a_code_and_an_error(library, inside):
    source, out = inside.tensor(np.zeros(512, np.int32), "x"), inside.empty((256,), np.int32, "out")
    assert library._library.copy_rows(ctypes.c_void_p(source.ptr + 4), pointer(out), 8) == INVALID_VALUE
    with pytest.raises(ptxsim.BadProgram, match="globalAddress"):
        raise_pending()
    with pytest.raises(ptxsim.BadProgram, match="globalDim"):
        library.copy_rows(pointer(source), pointer(out), 0)


def test_a_cluster_by_its_attribute(library, inside):
    out = inside.empty((16,), np.int32, "out")
    assert library.launch_cluster(pointer(out), 16, 4, 0) == 0
    assert out.numpy().tolist() == [0, 1, 2, 3] * 4
    assert library._library.launch_cluster(pointer(out), 16, 16, 0) == INVALID_CLUSTER
    with pytest.raises(ptxsim.LaunchLimit, match="16 CTAs > 8"):
        raise_pending()
    with pytest.raises(ptxsim.LaunchLimit, match="multiple"):
        library.launch_cluster(pointer(out), 15, 4, 0)
    assert library.launch_cluster(pointer(out), 16, 16, 1) == 0
    assert out.numpy().tolist() == list(range(16))


def test_programmatic_launches(library, inside):
    parts, out = inside.empty((32,), np.int32, "parts"), inside.empty((32,), np.int32, "out")
    for programmatic, waits, synchronises in ((1, 1, 0), (0, 0, 0), (0, 1, 0), (1, 0, 1)):
        assert library.launch_dependent(pointer(parts), pointer(out), programmatic, waits, synchronises) == 0
        assert out.numpy().tolist() == list(range(1, 33))
    with pytest.raises(ptxsim.Race, match="prerequisite grid"):
        library.launch_dependent(pointer(parts), pointer(out), 1, 0, 0)


def test_a_graph_keeps_dependent_launches(library, inside):
    """What it captures does not run; each launch of the graph runs it all."""
    parts, out = inside.empty((32,), np.int32, "parts"), inside.tensor(np.zeros(32, np.int32), "out")
    nodes = ctypes.c_size_t()
    assert library.capture_dependent(pointer(parts), pointer(out), 0, 0, 0, ctypes.byref(nodes)) == 0
    assert nodes.value == 2 and not out.numpy().any()
    inside.launches()
    assert library.capture_dependent(pointer(parts), pointer(out), 1, 0, 3, ctypes.byref(nodes)) == 0
    assert len(inside.launches()) == 6 and out.numpy().tolist() == list(range(1, 33))
    with pytest.raises(ptxsim.Race, match="prerequisite grid"):
        library.capture_dependent(pointer(parts), pointer(out), 0, 0, 1, ctypes.byref(nodes))


def test_a_graph_waits_for_what_came_before(library, inside):
    """Its first kernel is no dependent of the stream's last, whatever it was captured as."""
    parts, out = inside.empty((32,), np.int32, "parts"), inside.empty((32,), np.int32, "out")
    nodes = ctypes.c_size_t()
    assert library.capture_dependent(pointer(parts), pointer(out), 1, 0, 2, ctypes.byref(nodes)) == 0
    assert library.capture_dependent(pointer(out), pointer(parts), 1, 0, 1, ctypes.byref(nodes)) == 0


def test_what_no_capture_allows(library, inside):
    parts, out = inside.empty((32,), np.int32, "parts"), inside.empty((32,), np.int32, "out")
    nodes = ctypes.c_size_t()
    invalidated = 901
    assert library.capture_dependent(pointer(parts), pointer(out), 1, 1, 1, ctypes.byref(nodes)) == invalidated
    with pytest.raises(ptxsim.Unsupported, match="cudaMemcpyAsync while a stream captures"):
        library.capture_copy(pointer(parts), pointer(out))


def test_how_many_clusters_fit(library, inside):
    assert library.most_clusters(4) == 132 * 2 // 4
