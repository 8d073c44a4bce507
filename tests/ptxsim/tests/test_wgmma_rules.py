"""One rule of wgmma, setmaxnreg and fence.proxy a program, right and wrong: the wrong one stops at its line under every
seed, the right one under none, and each check can be turned off by its name."""

import re

import numpy as np
import ptxsim
import pytest
from wgmma_programs import descriptor, instruction, kernel

SMALL = descriptor("none", 128, 256)
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%d0, %d1, %d2, %d3}, %da, %db, %go, 1, 1, 0, 0;"
FROM_REGISTERS = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, %db, %go, 1, 1, 0;"
FROM_ACCUMULATORS = FROM_REGISTERS.replace("%a0", "%d0").replace("{%d0, %d1, %d2, %d3}, {", "{%v0, %v1, %v2, %v3}, {")
FENCE, COMMIT, WAIT = ("wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;")
GROUP = f"{PRODUCT} {COMMIT}"


def run(body, seed=0, checks=None, before="fence.proxy.async;", block=128, registers=0):
    """`body` stands where the product would; %d, %a and the descriptors are loaded."""
    whole = kernel("BODY", 4, "f32", 4096, SMALL, SMALL, 0, 2048, after_store=before, fence="", commit="", wait="")
    text = re.sub(r"BODY.*;", body, whole)
    first = "\n".join(f"  ld.global.b32 %a{i}, [%r + {512 * i}];" for i in range(4))
    text = text.replace("  add.u32 %y, %s, 0;", first + "\n  add.u32 %y, %s, 0;", 1)
    if block != 128:
        text = text.replace(".maxntid 128", f".maxntid {block}").replace("COPY:", "bra COPIED;\nCOPY:")
    dev = ptxsim.Device("sm_90a", seed=seed, threads=1, checks=checks)
    out = dev.empty((2, 4, 128), np.uint32, "out")
    tensors = [dev.tensor(np.zeros(n, np.uint8), name) for n, name in ((8192, "image"), (4096, "a"), (4096, "c"))]
    entry = ptxsim.load_ptx(text).kernel("k")
    entry.program.registers = registers
    return dev.launch(entry, 1, block, [*tensors, out])


MOVE_ALL = " ".join(f"mov.b32 %v{i}, %d{i};" for i in range(4))
MOVE_BACK = " ".join(f"mov.b32 %d{i}, %v{i};" for i in range(4))
TOUCH = "add.f32 %d0, %d0, %d0;"
OTHER_SHAPE = "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%d0, %d1, %d2, %d3}, %da, %db, %go, 1, 1;"
DONE = f"{FENCE}\n{GROUP}\n{WAIT}"  # a product from beginning to end
WORDS = "bar.sync 0; mad.lo.u32 %y, %t, 4, %s; add.u32 %y, %y, 2048;"  # of B, which every warp reads
STORE = f"{WORDS} st.shared.b32 [%y], %t;"
ASYNC = "fence.proxy.async.shared::cta;"
COPIED = "cp.async.wait_all;"  # cp.async writes through the generic proxy
COPY_ASYNC = f"{WORDS} cp.async.ca.shared.global [%y], [%c], 4; {COPIED}"
WARPS_0_TO_2 = "setp.lt.u32 %p, %t, 96;"

# The wrong body, the line it stops at, the right body, the check that lets the wrong one pass (None: another error would).
RULES = {
    "read while pending": (f"{FENCE}\n{GROUP}\n{TOUCH}\n{WAIT}", "add.f32", f"{DONE}\n{TOUCH}", "wgmma"),
    "write while pending": (f"{FENCE}\n{GROUP}\ncvt.rn.f32.u32 %d1, %t;\n{WAIT}", "cvt.rn", f"{DONE}\ncvt.rn.f32.u32 %d1, %t;", "wgmma"),
    "a constant while pending": (f"{FENCE}\n{GROUP}\nmov.b32 %d1, 0;\n{WAIT}", "mov.b32", f"{DONE}\nmov.b32 %d1, 0;", "wgmma"),
    "A while pending": (f"{FENCE}\n{FROM_REGISTERS} {COMMIT}\nadd.u32 %a2, %a2, 1;\n{WAIT}", "add.u32",
                        f"{FENCE}\n{FROM_REGISTERS} {COMMIT}\n{WAIT}\nadd.u32 %a2, %a2, 1;", "wgmma"),
    "the copy of a mov": (f"{FENCE}\n{GROUP}\n{MOVE_ALL}\nadd.u32 %v0, %v0, 1;\n{WAIT}", "add.u32",
                          f"{FENCE}\n{GROUP}\n{MOVE_ALL}\n{WAIT}\n{MOVE_BACK}\nadd.u32 %v0, %v0, 1;", "wgmma"),
    "no commit": (f"{FENCE}\n{PRODUCT}\n{WAIT}\n{TOUCH}", "add.f32", f"{DONE}\n{TOUCH}", "wgmma"),
    "no fence at all": (f"{GROUP}\n{WAIT}", "wgmma.mma_async", f"{DONE}", "wgmma"),
    "no fence after a write": (f"{FENCE}\n{TOUCH}\n{GROUP}\n{WAIT}", "wgmma.mma_async", f"{FENCE}\n{TOUCH}\n{DONE}", "wgmma"),
    "no fence after a read": (f"{DONE}\nadd.u32 %v0, %d0, 1;\n{GROUP}\n{WAIT}", "wgmma.mma_async",
                              f"{DONE}\nadd.u32 %v0, %d0, 1;\n{DONE}", "wgmma"),
    "another shape": (f"{FENCE}\n{GROUP}\n{OTHER_SHAPE} {COMMIT}\n{WAIT}", "wgmma.mma_async",
        f"{FENCE}\n{GROUP}\n{GROUP}\n{WAIT}", "wgmma"),
    "accumulators as A": (f"{FENCE}\n{GROUP}\n{FROM_ACCUMULATORS} {COMMIT}\n{WAIT}",
                          "wgmma.mma_async", f"{DONE}", "wgmma"),
    "exit while pending": (f"{FENCE}\n{GROUP}\nret;", "ret", f"{DONE}\nret;", "wgmma"),
    "three warps": (f"{WARPS_0_TO_2}\n@!%p bra PAST;\n{FENCE}\nPAST:", "", f"{FENCE}", "divergence"),
    "part of a warp": (f"setp.lt.u32 %p, %t, 100;\n@%p {FENCE}", "wgmma.fence", f"{FENCE}", "divergence"),
    "descriptors differ": (f"mad.wide.u32 %db, %t, 0, %db; shr.u32 %y, %t, 5; cvt.u64.u32 %x, %y; add.u64 %db, %db, %x;\n{DONE}",
                           "wgmma.mma_async", f"add.u64 %db, %db, 1;\n{DONE}", "divergence"),
    "two instructions": (f"{WARPS_0_TO_2}\n@!%p bra OTHER;\n{FENCE}\nbra PAST;\nOTHER: {FENCE}\nPAST:", "wgmma.fence",
        f"{FENCE}", "divergence"),
    "a reserved bit": (f"or.b64 %db, %db, 16384;\n{DONE}", "wgmma.mma_async", f"{DONE}", "wgmma"),
    "a base offset that is none": (f"or.b64 %db, %db, 4611686018427387904; add.u64 %db, %db, 8;\n{DONE}", "wgmma.mma_async",
                                   f"{DONE}", "descriptor"),
    "writes its own operands": (f"{FENCE}\n{GROUP}\nst.shared.b32 [%s], %t;\n{WAIT}", "st.shared",
        f"{DONE}\nbar.sync 0;\nmov.u32 %y, room; mad.lo.u32 %y, %t, 4, %y; st.shared.b32 [%y], %t;", None),
    "writes another warp's": (f"{DONE}\nmad.lo.u32 %y, %t, 4, %s; st.shared.b32 [%y + 2048], %t;", "",
                              f"{DONE}\nbar.sync 0;\nmad.lo.u32 %y, %t, 4, %s; st.shared.b32 [%y + 2048], %t;", None),
    "written without a fence": (f"{STORE} bar.sync 0;\n{DONE}", "wgmma.mma_async",
                                f"{STORE} {ASYNC} bar.sync 0;\n{DONE}", "proxy"),
    "fenced before the write": (f"{ASYNC} {STORE} bar.sync 0;\n{DONE}", "wgmma.mma_async", f"{STORE} {ASYNC} bar.sync 0;\n{DONE}", "proxy"),
    "fenced by another too early": (f"{STORE} setp.lt.u32 %p, %t, 32; @%p {ASYNC} bar.sync 0;\n{DONE}", "wgmma.mma_async",
                                    f"{STORE} setp.lt.u32 %p, %t, 32; bar.sync 0; @%p {ASYNC} bar.sync 0;\n{DONE}", "proxy"),
    "fenced by another too late": (f"{STORE} setp.lt.u32 %p, %t, 32; bar.sync 0; @%p {ASYNC}\n{DONE}", "wgmma.mma_async",
                                   f"{STORE} bar.sync 0; {ASYNC}\n{DONE}", "proxy"),
    "cp.async without a fence": (f"{COPY_ASYNC} bar.sync 0;\n{DONE}", "wgmma.mma_async",
                                 f"{COPY_ASYNC} {ASYNC} bar.sync 0;\n{DONE}", "proxy"),
    "a fence before cp.async has landed": (f"{COPY_ASYNC.replace(COPIED, ASYNC + COPIED)} bar.sync 0;\n{DONE}", "wgmma.mma_async",
                                           f"{COPY_ASYNC} {ASYNC} bar.sync 0;\n{DONE}", "proxy"),
    "a fence of global memory": (f"{STORE} fence.proxy.async.global; bar.sync 0;\n{DONE}", "wgmma.mma_async",
                                 f"{DONE}", "proxy"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_wgmma(name):
    wrong, opcode, right, check = RULES[name]
    for seed in range(10):
        with pytest.raises((ptxsim.Race, ptxsim.Divergence, ptxsim.Misaligned)) as caught:
            run(wrong, seed)
        assert opcode in caught.value.ptx_text, str(caught.value)
    for seed in range(50):
        run(right, seed)
    if check:
        run(wrong, 0, checks={check: False})


def test_the_check_of_descriptors_is_not_that_of_alignment():
    wrong = RULES["a base offset that is none"][0]
    with pytest.raises(ptxsim.Misaligned, match="base offset"):
        run(wrong, checks={"align": False})


def test_undefined_operands_make_rows_and_columns_undefined():
    text = kernel(instruction(8, "f32", "bf16", "bf16"), 4, "f32", 4096, SMALL, SMALL, 0, 2048, ", 1, 1, 0, 0")
    for why in ("setp.eq.u32 %p, %t, 1; @%p bra COPIED;", "setp.eq.u32 %p, %t, 4; @%p bra COPIED;"):
        broken = text.replace("COPY:", why + "\nCOPY:", 1)
        dev = ptxsim.Device("sm_90a")
        out = dev.empty((1, 4, 128), np.uint32, "out")
        tensors = [dev.tensor(np.zeros(n, np.uint8), "x") for n in (4096, 2048, 2048)]
        with pytest.raises(ptxsim.Undefined, match="stored to global"):
            dev.launch(ptxsim.load_ptx(broken).kernel("k"), 1, 128, [*tensors, out])


BEYOND_8, IN_16 = "setp.ge.u32 %p, %t, 8;", "setp.lt.u32 %p, %t, 16;"  # a thread copies a row of V


def test_the_tail_of_v_that_nobody_cleared_reaches_every_result():
    """P is zero where there is no key. But zero times what nobody wrote is undefined: V's last rows have to be cleared."""
    rows_of_v = descriptor("none", 128, 256)
    product = instruction(8, "f32", "bf16", "bf16")
    text = kernel(product, 4, "f32", 256, None, rows_of_v, 0, 0, ", 1, 1, 1")  # B, 16 x 8, is all that lies in shared memory
    cleared = text.replace("COPY:", f"{BEYOND_8} @!%p bra COPY; {IN_16} @%p st.shared.v4.b32 [%y], {{0, 0, 0, 0}}; bra COPIED;\nCOPY:", 1)
    left = text.replace("COPY:", f"{BEYOND_8} @%p bra COPIED;\nCOPY:", 1)
    for seed in range(10):
        dev = ptxsim.Device("sm_90a", seed=seed)
        out = dev.empty((1, 4, 128), np.uint32, "out")
        tensors = [dev.tensor(np.zeros(n, np.uint8), "x") for n in (256, 2048, 2048)]
        with pytest.raises(ptxsim.Undefined, match="stored to global"):
            dev.launch(ptxsim.load_ptx(left).kernel("k"), 1, 128, [*tensors, out])
        dev.launch(ptxsim.load_ptx(cleared).kernel("k"), 1, 128, [*tensors, out])


DEC, INC = "setmaxnreg.dec.sync.aligned.u32", "setmaxnreg.inc.sync.aligned.u32"
FIRST = "setp.lt.u32 %p, %t, 128; @!%p bra OTHERS;"


@pytest.mark.parametrize("body, kind, registers", [
    (f"{DEC} 200;", ptxsim.LaunchLimit, 128),
    (f"{INC} 64;", ptxsim.LaunchLimit, 128),
    (f"{INC} 136;", ptxsim.Deadlock, 128),
    (f"{FIRST} {DEC} 40; bra PAST;\nOTHERS: {INC} 224;\nPAST:", ptxsim.Deadlock, 128),
    (f"{FIRST} {DEC} 44; bra PAST;\nOTHERS: {INC} 208;\nPAST:", ptxsim.Unsupported, 128),
    (f"{FIRST} {DEC} 40; bra PAST;\nOTHERS: {INC} 264;\nPAST:", ptxsim.Unsupported, 128),
    (f"setp.lt.u32 %p, %t, 32; @%p {DEC} 40;", ptxsim.Divergence, 128),
    (f"{DEC} 64; {DEC} 40;", ptxsim.Race, 128),
    (f"{DEC} 64; bar.sync 0; {DEC} 40;", None, 128),
    (f"{FIRST} {DEC} 40; bra PAST;\nOTHERS: {INC} 216;\nPAST:", None, 128),
    (f"{FIRST} {DEC} 40; bra PAST;\nOTHERS: {INC} 208;\nPAST:", None, 125),
])  # fmt: skip
def test_setmaxnreg_moves_registers_of_one_pool(body, kind, registers):
    body = f"bar.sync 0; {body} ret;"
    for seed in range(10):
        if kind is None:
            run(body, seed, block=256, registers=registers)
        else:
            with pytest.raises(kind, match="setmaxnreg"):
                run(body, seed, block=256, registers=registers)
