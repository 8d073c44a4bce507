"""Memory of others: defined or fresh, whole or as views with gaps between their rows; views of tensors outlive them."""

import gc

import numpy as np
import ptxsim
import pytest
from truth import module_text

# Every thread stores its number to out + tid * stride; or reads in + tid * stride and stores that.
KERNELS = """.visible .entry {name}(.param .u64 in, .param .u64 out, .param .u32 stride)
{{
  .reg .b64 %in, %out, %x; .reg .b32 %t, %v, %s;
  ld.param.u64 %in, [in]; ld.param.u64 %out, [out]; ld.param.u32 %s, [stride];
  mov.u32 %t, %tid.x; mul.wide.u32 %x, %t, %s; add.u64 %in, %in, %x; add.u64 %out, %out, %x;
  {body}
  ret;
}}
"""
MODULE = module_text("sm_80", [KERNELS.format(name="fill", body="st.global.u32 [%out], %t;"),
                               KERNELS.format(name="copy", body="ld.global.u32 %v, [%in]; st.global.u32 [%out], %v;"),
                               KERNELS.format(name="pairs", body="st.global.v2.u32 [%out], {%t, %t};"),
                               KERNELS.format(name="add", body="red.global.add.u32 [%out], %t;")])


@pytest.fixture
def dev():
    return ptxsim.Device(threads=1)


@pytest.fixture(scope="module")
def module():
    return ptxsim.load_ptx(MODULE)


@pytest.fixture
def memory(dev):
    """registered(array, ...) → Registration, undone at the end."""
    made = []

    def registered(array, name, **kwargs):
        made.append(dev.register(array.ctypes.data, array.nbytes, name, **kwargs))
        return made[-1]

    yield registered
    for registration in made:
        registration.unregister()


def launch(dev, module, kernel, into, out, stride=4, block=32):
    dev.launch(module.kernel(kernel), 1, block, [into.ctypes.data, out.ctypes.data, np.uint32(stride)])


def test_fresh_output_is_poisoned_and_knows_what_is_missing(dev, module, memory):
    out = np.zeros((4, 16), np.int32)
    registration = memory(out, "out", defined=False)
    assert (out == -1).all() and registration.undefined_bytes == out.nbytes
    launch(dev, module, "fill", out, out, block=48)
    missing = registration.undefined().reshape(4, 16, 4).any((1, 2))
    assert missing.tolist() == [False, False, False, True], "row 3 was never written"
    assert registration.undefined_bytes == 64 and (out[:3].ravel() == np.arange(48)).all()


def test_reading_fresh_output_is_an_error_and_reading_input_is_not(dev, module, memory):
    source, out = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    registration = memory(source, "source")
    memory(out, "out")
    assert registration.undefined_bytes == 0 and not registration.undefined().any()
    launch(dev, module, "copy", source, out)
    assert (out == source).all()
    registration.unregister()
    memory(source, "source", defined=False)
    with pytest.raises(ptxsim.Undefined):
        launch(dev, module, "copy", source, out)


def test_a_tensor_knows_its_missing_elements(dev, module):
    out = dev.empty((2, 24), np.int32, "out")
    dev.launch(module.kernel("fill"), 1, 32, [out, out, np.uint32(4)])
    assert out.undefined().shape == (2, 24) and out.undefined().sum() == 16 and not out.undefined()[0].any()


@pytest.mark.parametrize("kernel", ["fill", "copy", "add"])
def test_gaps_between_rows_may_not_be_touched(dev, module, memory, kernel):
    """A view of 4 rows of 8 in a buffer of rows of 12: right with the row stride of the view, an error without."""
    buffer = np.zeros((4, 12), np.int32)
    memory(buffer, "buffer").allow(0, (4, 8), (48, 4), 4)
    launch(dev, module, kernel, buffer, buffer, block=8)
    with pytest.raises(ptxsim.OutOfBounds, match="buffer.*gap") as caught:
        launch(dev, module, kernel, buffer, buffer, block=9)
    assert caught.value.lane == 8 and caught.value.tensor == "buffer"


def test_a_vector_may_not_reach_into_a_gap(dev, module, memory):
    buffer = np.zeros((8, 12), np.int32)
    memory(buffer, "buffer").allow(0, (8, 11), (48, 4), 4)
    launch(dev, module, "pairs", buffer, buffer, stride=48, block=8)
    out = buffer.ravel()[10:]
    with pytest.raises(ptxsim.OutOfBounds, match="gap"):
        launch(dev, module, "pairs", out, out, stride=48, block=2)


def test_views_of_one_buffer_add_up_and_only_the_fresh_one_is_poisoned(dev, module, memory):
    """Columns 0-3 are input, 4-7 output, 8-11 neither."""
    buffer = np.ones((8, 12), np.int32)
    registration = memory(buffer, "buffer")
    registration.allow(0, (8, 4), (48, 4), 4).allow(16, (8, 4), (48, 4), 4, defined=False)
    assert (buffer[:, 4:8] == -1).all() and buffer.sum() == 8 * (4 - 4 + 4)
    launch(dev, module, "copy", buffer, buffer[:, 4:], stride=48, block=8)
    missing = registration.undefined().reshape(8, 12, 4).any(-1)
    assert missing.sum() == 8 * 3 and not missing[:, :5].any() and not missing[:, 8:].any()
    assert registration.undefined_bytes == 8 * 3 * 4


def test_a_view_beyond_the_memory_is_refused(dev, memory):
    registration = memory(np.zeros(16, np.int32), "buffer")
    with pytest.raises(ptxsim.BadProgram, match="ends at byte 68"):
        registration.allow(4, (16,), (4,), 4)
    registration.allow(0, (0, 99), (4, 4), 4)


def test_overlapping_registrations_are_refused(dev, memory):
    buffer = np.zeros(64, np.int32)
    memory(buffer, "whole")
    with pytest.raises(ptxsim.BadProgram, match="overlaps that of whole"):
        dev.register(buffer.ctypes.data + 64, 64, "part")


@pytest.mark.parametrize("released", [False, True])
def test_a_view_outlives_its_tensor(dev, released):
    tensor = dev.tensor(np.arange(1 << 20, dtype=np.int32), "short-lived")
    view, address = tensor.numpy(), tensor.ptr
    if released:
        tensor.release()
    del tensor
    gc.collect()
    assert view[-1] == (1 << 20) - 1
    view[...] = 7
    assert view.sum() == 7 << 20
    with pytest.raises(ptxsim.OutOfBounds):  # the memory is there, but no kernel may touch it any more
        text = module_text("sm_80", [KERNELS.format(name="fill", body="st.global.u32 [%out], %t;")])
        dev.launch(ptxsim.load_ptx(text).kernel("fill"), 1, 32, [address, address, np.uint32(4)])
