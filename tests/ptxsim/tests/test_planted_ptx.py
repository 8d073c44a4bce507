"""Planted bugs that take hand-written PTX: registers nobody wrote, unknown or wrong text, broken launches."""

import numpy as np
import ptxsim
import pytest
from truth import module_text

HEAD = """.visible .entry k(.param .u64 out)
{
  .reg .b64 %p, %x; .reg .b32 %t, %v, %w; .reg .pred %q;
  ld.param.u64 %p, [out];
  mov.u32 %t, %tid.x;
"""


def run(body, entry=HEAD, block=32, grid=1, arguments=(), seed=0, size=64, checks=None):
    dev = ptxsim.Device(profile="sm_80", seed=seed, threads=1, checks=checks)
    out = dev.empty((size,), np.int32, "out")
    kernel = ptxsim.load_ptx(module_text("sm_80", [entry + body + "\n  ret;\n}\n"])).kernel("k")
    dev.launch(kernel, grid, block, [out, *arguments])
    return out.numpy().copy()


ADDRESS = "mul.wide.u32 %x, %t, 4; add.u64 %p, %p, %x;"
UNDEFINED = {
    "address": ("mul.wide.u32 %x, %w, 4; add.u64 %p, %p, %x; st.global.u32 [%p], %t;", "mov.u32 %w, %t;"),
    "shared address": (".shared .b32 room[64]; st.shared.u32 [%w], %t;", "mov.u32 %w, room;"),
    "branch": ("setp.eq.u32 %q, %w, 0; @%q bra END; mov.u32 %v, 1;\nEND:", "mov.u32 %w, 0;"),
    "predicate never set": ("@%q mov.u32 %v, 1;", "setp.eq.u32 %q, 0, 0;"),
    "global store": (ADDRESS + "st.global.u32 [%p], %w;", "mov.u32 %w, 5;"),
    "through arithmetic": (ADDRESS + "mad.lo.u32 %v, %w, 3, %t; xor.b32 %v, %v, %t; st.global.u32 [%p], %v;", "mov.u32 %w, 5;"),
    "through a shuffle": (ADDRESS + "shfl.sync.idx.b32 %v, %w, 0, 31, -1; st.global.u32 [%p], %v;", "mov.u32 %w, 5;"),
    "atomic operand": ("st.global.u32 [%p], 0; red.global.add.u32 [%p], %w;", "mov.u32 %w, 5;"),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_an_undefined_value_is_caught(name):
    body, definition = UNDEFINED[name]
    with pytest.raises(ptxsim.Undefined) as caught:
        run(body, block=1)
    assert caught.value.ptx_line and caught.value.ptx_text
    declaration = ".shared .b32 room[64];"
    run(declaration + definition + body.replace(declaration, "") if declaration in body else definition + body, block=1)


def test_multiplying_an_undefined_value_by_zero_keeps_it_undefined():
    with pytest.raises(ptxsim.Undefined):
        run(ADDRESS + "mul.lo.u32 %v, %w, 0; st.global.u32 [%p], %v;")


def test_poison_is_not_zero():
    """With the check off, the value seen is still no plausible one."""
    got = run(ADDRESS + "st.global.u32 [%p], %w;", checks={"undefined": False})[:32]
    assert not (got == 0).any()


@pytest.mark.parametrize("line", ["tex.1d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [tex_a, {%t}];", "frobnicate.u32 %v, %t;",
                                  "add.u24 %v, %t, %t;", "wgmma.fence.sync.aligned;"])
def test_what_is_not_supported_stops_with_its_text_and_line(line):
    with pytest.raises((ptxsim.Unsupported, ptxsim.BadProgram)) as caught:
        run("\n" + line)
    message = str(caught.value)
    assert line.split()[0] in message
    wanted = next(i for i, text in enumerate(module_text("sm_80", [HEAD + "\n" + line]).splitlines(), 1) if line in text)
    assert str(wanted) in message


@pytest.mark.parametrize("text", ["", "this is not PTX", ".version 9.0\n.target sm_80\n.visible .entry k() { mov.u32 %r1",
                                  ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() { mov.u32 %r1, %r2; ret; }",
                                  ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() { bra NOWHERE; }"],
                         ids=["empty", "prose", "cut off", "undeclared register", "missing label"])
def test_a_broken_text_is_refused(text):
    with pytest.raises(ptxsim.SimError):
        module = ptxsim.load_ptx(text)
        ptxsim.Device(profile="sm_80").launch(module.kernel("k"), 1, 1, [])


def test_a_kernel_that_is_not_there():
    with pytest.raises((ptxsim.SimError, KeyError), match="absent"):
        ptxsim.load_ptx(module_text("sm_80", [HEAD + "ret; }"])).kernel("absent")


@pytest.mark.parametrize("arguments", [(), (1, 2, 3)], ids=["too few", "too many"])
def test_the_number_of_arguments_is_checked(arguments):
    kernel = ptxsim.load_ptx(module_text("sm_80", [HEAD + "ret; }"])).kernel("k")
    with pytest.raises((ptxsim.SimError, TypeError, ValueError)):
        ptxsim.Device(profile="sm_80").launch(kernel, 1, 1, list(arguments))


def test_unregistered_memory_is_out_of_bounds():
    """A numpy array the device was never told of, until it is registered; read-only memory cannot be written."""
    array = np.zeros(64, np.int32)
    kernel = ptxsim.load_ptx(module_text("sm_80", [HEAD + "st.global.u32 [%p], 7; ret; }"])).kernel("k")
    dev = ptxsim.Device(profile="sm_80")
    with pytest.raises(ptxsim.OutOfBounds):
        dev.launch(kernel, 1, 1, [array.ctypes.data])
    dev.register(array.ctypes.data, array.nbytes, "mine")
    dev.launch(kernel, 1, 1, [array.ctypes.data])
    assert array[0] == 7
    dev.unregister(array.ctypes.data)
    dev.register(array.ctypes.data, array.nbytes, "frozen", writable=False)
    with pytest.raises(ptxsim.SimError, match="frozen"):
        dev.launch(kernel, 1, 1, [array.ctypes.data])
    dev.unregister(array.ctypes.data)


def test_sparse_tensors_reach_beyond_32_bits():
    dev = ptxsim.Device(profile="sm_80")
    far = dev.sparse(1 << 36, "far")
    body = "mov.u64 %x, 0x800000000; add.u64 %p, %p, %x; st.global.u32 [%p], 9; ld.global.u32 %v, [%p]; st.global.u32 [%p+8], %v; ret; }"
    kernel = ptxsim.load_ptx(module_text("sm_80", [HEAD + body])).kernel("k")
    dev.launch(kernel, 1, 1, [far])
    with pytest.raises(ptxsim.OutOfBounds, match="far"):
        beyond = HEAD + body.replace("0x800000000", "0x1000000000")
        dev.launch(ptxsim.load_ptx(module_text("sm_80", [beyond])).kernel("k"), 1, 1, [far])


def test_a_loop_without_end_does_not_hang_a_barrier():
    """Half of the threads wait for the other half, which has gone."""
    with pytest.raises(ptxsim.Deadlock):
        run("setp.lt.u32 %q, %t, 32; @%q bra OUT; bar.sync 1, 64;\nOUT:", block=64)
