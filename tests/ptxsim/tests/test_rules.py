"""Small PTX programs, each of which hangs on one rule: right programs that raised false alarms once, wrong ones that passed."""

import numpy as np
import ptxsim
import pytest
from truth import module_text

HEAD = """.visible .entry k(.param .u64 out, .param .u64 in)
{
  .reg .b64 %p, %in, %x, %y; .reg .b32 %t, %v, %w, %c, %s, %n; .reg .f32 %f<5>; .reg .b16 %h<3>; .reg .pred %q, %r, %z;
  ld.param.u64 %p, [out]; ld.param.u64 %in, [in];
  mov.u32 %t, %tid.x; mov.u32 %c, %ctaid.x; mul.wide.u32 %x, %t, 4; add.u64 %y, %p, %x;
"""


def run(body, functions=(), block=32, grid=1, seed=0, size=64, target="sm_80", source=None, threads=1, checks=None):
    dev = ptxsim.Device(profile=target, seed=seed, threads=threads, checks=checks)
    out = dev.empty((size,), np.int32, "out")
    given = dev.tensor(np.zeros(size, np.int32) if source is None else source, "in")
    kernel = ptxsim.load_ptx(module_text(target, [*functions, HEAD + body + "\n  ret;\n}\n"])).kernel("k")
    dev.launch(kernel, grid, block, [out, given])
    return out.numpy().copy()


# Calls.

COUNT = """.func (.param .b32 r) {name}(.param .b32 a)
{{
  .reg .b32 %i, %n, %s; .reg .pred %q;
  ld.param.b32 %n, [a]; mov.u32 %i, 0; mov.u32 %s, {start};
LOOP:
  add.u32 %s, %s, %i; add.u32 %i, %i, 1;
  setp.lt.u32 %q, %i, %n; @%q bra LOOP;
  st.param.b32 [r], %s; ret;
}}
"""
CALL = "{{ .param .b32 a; .param .b32 r; st.param.b32 [a], %n; call.uni (r), {name}, (a); ld.param.b32 %v, [r]; }}"


@pytest.mark.parametrize("seed", range(12))
def test_lanes_in_different_functions_keep_their_registers(seed):
    """Half of the warp loops in one function, half in another: a call must not disturb what other lanes have."""
    body = ("and.b32 %w, %t, 1; setp.eq.u32 %q, %w, 0; add.u32 %n, %t, 1; @%q bra EVEN;" + CALL.format(name="odd") + "bra JOIN;\nEVEN:"
            + CALL.format(name="even") + "\nJOIN: st.global.u32 [%y], %v;")
    out = run(body, [COUNT.format(name="odd", start=100), COUNT.format(name="even", start=200)], seed=seed)
    t = np.arange(32)
    assert (out[:32] == t * (t + 1) // 2 + np.where(t % 2, 100, 200)).all()


# Release and acquire.

def hand_over(release):
    """CTA 0 writes data and then a flag (in[0]); CTA 1 waits for the flag and reads the data (in[1])."""
    return ("setp.ne.u32 %q, %c, 0; @%q bra READER; st.global.u32 [%in+4], 41;" + release + " bra END;\nREADER:"
            "ld.global.acquire.gpu.u32 %v, [%in]; setp.eq.u32 %q, %v, 0; @%q bra READER;"
            "ld.global.u32 %v, [%in+4]; st.global.u32 [%p], %v;\nEND:")


RELEASES = [
    "st.global.release.gpu.u32 [%in], 1;",
    "red.release.gpu.global.add.u32 [%in], 1;",
    "atom.add.acq_rel.gpu.global.u32 %v, [%in], 1;",
    "fence.acq_rel.gpu; st.global.relaxed.gpu.u32 [%in], 1;",
    "membar.gl; st.global.volatile.u32 [%in], 1;",
    "fence.sc.gpu; red.relaxed.gpu.global.add.u32 [%in], 1;",
]
NO_RELEASES = [
    "st.global.relaxed.gpu.u32 [%in], 1;",
    "red.relaxed.gpu.global.add.u32 [%in], 1;",
    "atom.add.acquire.gpu.global.u32 %v, [%in], 1;",
    "fence.acq_rel.cta; st.global.relaxed.gpu.u32 [%in], 1;",
    "st.global.release.cta.u32 [%in], 1;",
]


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_orders_what_came_before(release):
    for seed in range(4):
        assert run(hand_over(release), block=1, grid=2, seed=seed)[0] == 41


@pytest.mark.parametrize("release", NO_RELEASES)
def test_what_does_not_release_orders_nothing(release):
    with pytest.raises(ptxsim.Race):
        for seed in range(4):
            run(hand_over(release), block=1, grid=2, seed=seed)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_word_may_pass_through_many_hands(threads):
    """Each CTA waits for the one before it, adds its number to a word, and lets the next one go: a serial reduction."""
    body = ("WAIT: ld.global.acquire.gpu.u32 %v, [%in]; setp.ne.u32 %q, %v, %c; @%q bra WAIT; setp.eq.u32 %r, %c, 0; mov.u32 %w, 0;"
            "@!%r ld.global.u32 %w, [%p]; add.u32 %w, %w, %c; st.global.u32 [%p], %w; fence.acq_rel.gpu;"
            "red.relaxed.gpu.global.add.u32 [%in], 1;")
    for seed in range(6):
        assert run(body, block=1, grid=9, seed=seed, threads=threads)[0] == 36


@pytest.mark.parametrize("seed", range(4))
def test_the_same_error_is_reported_with_two_threads(seed):
    """CTA 11 of 64 reads past the end at once, CTA 40 after a while: whichever is handed out first is reported."""
    body = ("setp.eq.u32 %q, %c, 11; setp.eq.u32 %r, %c, 40; mov.u32 %n, 0; @%q bra BAD; @!%r bra END;\nLOOP: add.u32 %n, %n, 1;"
            "setp.lt.u32 %z, %n, 60000; @%z bra LOOP;\nBAD: ld.global.u32 %v, [%in+1024];\nEND:")
    places = set()
    for threads in (1, 2, 2, 2):
        with pytest.raises(ptxsim.OutOfBounds) as caught:
            run(body, grid=64, seed=seed, threads=threads)
        places.add((caught.value.cta, caught.value.lane, str(caught.value).split("Kernel")[1]))
    assert len(places) == 1


# Barriers.

@pytest.mark.parametrize("barrier", ["barrier.sync 0;", "barrier.sync 1, 64;", "barrier.sync.aligned 1, 64;", "bar.sync 0;"])
@pytest.mark.parametrize("block", [48, 33, 64])
def test_a_barrier_counts_a_partial_warp_as_whole(barrier, block):
    """Threads that a warp never had, like those that have exited, are not awaited."""
    body = (".shared .b32 room[64]; mov.u32 %s, room; shl.b32 %w, %t, 2; add.u32 %w, %s, %w; st.shared.u32 [%w], %t;" + barrier
            + f"sub.u32 %v, {4 * (block - 1)}, %w; add.u32 %v, %v, %s; add.u32 %v, %v, %s; ld.shared.u32 %v, [%v]; st.global.u32 [%y], %v;")
    assert run(body, block=block)[:block].tolist() == list(range(block))[::-1]


@pytest.mark.parametrize("barrier", ["barrier.sync 0;", "barrier.sync 1, 64;"])
def test_a_barrier_does_not_wait_for_exited_lanes(barrier):
    body = "and.b32 %w, %t, 3; setp.eq.u32 %q, %w, 0; @%q exit;" + barrier + "st.global.u32 [%y], %t;"
    for seed in range(4):
        out = run(body, block=64, seed=seed)
        assert (out[np.arange(64) % 4 != 0] == np.arange(64)[np.arange(64) % 4 != 0]).all()


@pytest.mark.parametrize("barrier", ["barrier.sync 0;", "barrier.sync 1, 64;"])
def test_lanes_may_come_to_an_unaligned_barrier_one_by_one(barrier):
    body = ("and.b32 %w, %t, 3; setp.eq.u32 %q, %w, 0; @%q bra A;" + barrier + "bra B;\nA: mov.u32 %w, 7;" + barrier
            + "\nB: st.global.u32 [%y], %w;")
    for seed in range(4):
        assert run(body, block=64, seed=seed).tolist() == [7, 1, 2, 3] * 16


# mbarrier.

MBARRIER = ".shared .align 8 .b64 room[2]; .reg .b64 %state; mov.u32 %s, room; "
INIT = "setp.ne.u32 %q, %t, 0; @!%q mbarrier.init.shared.b64 [%s], 64;"
WAIT = "\nW: mbarrier.test_wait.parity.shared.b64 %r, [%s], 0; @!%r bra W; st.global.u32 [%y], 1;"


def test_an_mbarrier_is_ready_after_a_barrier():
    assert run(MBARRIER + INIT + "bar.sync 0; mbarrier.arrive.shared.b64 %state, [%s];" + WAIT, block=64).tolist() == [1] * 64


def test_waiting_at_an_mbarrier_of_another_warp_takes_a_barrier():
    body = "setp.lt.u32 %z, %t, 32; @%z bra A; mbarrier.test_wait.parity.shared.b64 %r, [%s], 0;\nA: st.global.u32 [%y], 1;"
    seen = []
    for seed in range(8):
        try:
            run(MBARRIER + INIT + body, block=64, seed=seed)
        except (ptxsim.Race, ptxsim.Undefined) as error:
            seen.append(error)
    assert len(seen) == 8


@pytest.mark.parametrize("instruction", ["mbarrier.test_wait.parity.shared.b64 %r, [%s], %w;",
                                         "mbarrier.test_wait.shared.b64 %r, [%s], %state;",
                                         "mbarrier.arrive.shared.b64 %state, [%s], %w;"])
def test_an_mbarrier_takes_defined_operands(instruction):
    with pytest.raises(ptxsim.Undefined):
        run(MBARRIER + "mbarrier.init.shared.b64 [%s], 1;" + instruction, block=1)


# Definedness.

def test_an_undefined_operand_of_a_shared_atomic_poisons_the_word():
    room = ".shared .b32 room[1]; mov.u32 %s, room; st.shared.u32 [%s], 0; "
    load = "ld.shared.u32 %v, [%s]; st.global.u32 [%p], %v;"
    assert run(room + "mov.u32 %w, 3; red.shared.add.u32 [%s], %w;" + load, block=1)[0] == 3
    for operation in ("red.shared.add.u32 [%s], %w;", "atom.shared.exch.b32 %n, [%s], %w;", "atom.shared.cas.b32 %n, [%s], 0, %w;"):
        with pytest.raises(ptxsim.Undefined):
            run(room + operation + load, block=1)


def test_an_exchange_defines_its_word():
    body = "mov.u32 %w, 3; atom.{space}.exch.b32 %n, [{at}], %w; ld.{space}.u32 %v, [{at}]; st.global.u32 [%p+4], %v;"
    assert run(body.format(space="global", at="%p"), block=1)[1] == 3
    assert run(".shared .b32 room[1]; mov.u32 %s, room;" + body.format(space="shared", at="%s"), block=1)[1] == 3


@pytest.mark.parametrize("operation, decided", [("and", False), ("or", True)])
def test_a_comparison_whose_other_side_decides_is_defined(operation, decided):
    """setp.lt.and p, undefined, 1, false is false whatever the comparison says."""
    ask = "setp.{how}.u32 %q, %t, 99; setp.lt.{op}.u32 %r, %w, 1, %q; selp.u32 %v, 1, 0, %r; st.global.u32 [%y], %v;"
    assert (run(ask.format(how="lt" if decided else "gt", op=operation))[:32] == int(decided)).all()
    with pytest.raises(ptxsim.Undefined):
        run(ask.format(how="gt" if decided else "lt", op=operation))


def test_the_source_of_an_empty_copy_need_not_be_defined():
    body = (".shared .align 16 .b32 room[4]; mov.u32 %s, room; cp.async.cg.shared.global [%s], [{at}], 16, {size}; cp.async.wait_all;"
            "ld.shared.u32 %v, [%s]; st.global.u32 [%p], %v;")
    assert run(body.format(at="%x0", size=0).replace("%x0", "%z0").join(["{ .reg .b64 %z0; ", " }"]), block=1)[0] == 0
    with pytest.raises(ptxsim.Undefined):
        run("{ .reg .b64 %z0; " + body.format(at="%z0", size=16) + " }", block=1)


def test_lanes_of_a_warp_are_ordered_by_a_warp_barrier_only():
    """Or by taking a warp for one thread: race_warp off. Other warps still need a barrier then."""
    body = (".shared .b32 room[64]; mov.u32 %s, room; xor.b32 %w, %t, {other}; shl.b32 %v, %t, 2; add.u32 %v, %s, %v; shl.b32 %n, %w, 2;"
            "add.u32 %n, %s, %n; st.shared.u32 [%v], %t; {sync} ld.shared.u32 %w, [%n]; st.global.u32 [%y], %w;")
    assert (run(body.format(other=1, sync="bar.warp.sync -1;"), block=64) == np.arange(64) ^ 1).all()
    assert (run(body.format(other=1, sync=""), block=64, checks={"race_warp": False}) == np.arange(64) ^ 1).all()
    with pytest.raises(ptxsim.Race):
        run(body.format(other=1, sync=""), block=64)
    with pytest.raises((ptxsim.Race, ptxsim.Undefined)):
        run(body.format(other=32, sync=""), block=64, checks={"race_warp": False})


# Addresses.

def test_shared_addresses_wrap():
    """Compilers move constants across 32-bit additions: the register may be below zero when the sum is not."""
    body = (".shared .b32 room[64]; mov.u32 %s, room; shl.b32 %w, %t, 2; add.u32 %w, %s, %w; sub.u32 %w, %w, 65536;"
            "st.shared.u32 [%w+65536], %t; ld.shared.u32 %v, [%w+65536]; st.global.u32 [%y], %v;")
    assert run(body)[:32].tolist() == list(range(32))
    with pytest.raises(ptxsim.OutOfBounds):
        run(body.replace("ld.shared.u32 %v, [%w+65536]", "ld.shared.u32 %v, [%w+32768]"))


@pytest.mark.parametrize("vector, aligned", [("v4", 16), ("v2", 8)])
def test_a_vector_reduction_is_aligned_as_a_whole(vector, aligned):
    values = ", ".join(["%f0"] * int(vector[1]))
    body = "mov.f32 %f0, 0f3F800000; red.global.add." + vector + ".f32 [%in+{at}], {{" + values + "}};"
    run(body.format(at=aligned), target="sm_90", block=1)
    with pytest.raises(ptxsim.Misaligned):
        run(body.format(at=aligned // 2), target="sm_90", block=1)


# Values.

def test_slct_with_ftz_takes_a_subnormal_for_zero():
    body = "mov.b32 %f0, 0x80000001; mov.u32 %v, 5; slct{}.u32.f32 %w, %v, %t, %f0; st.global.u32 [%y], %w;"
    assert (run(body.format(".ftz"))[:32] == 5).all() and (run(body.format(""))[:32] == np.arange(32)).all()


def test_ex2_ftz_of_bf16_flushes_its_result():
    body = "mov.b16 %h0, 0xC2FE; ex2.approx.ftz.bf16 %h1, %h0; cvt.u32.u16 %v, %h1; st.global.u32 [%p], %v;"  # 2 ** -127
    assert run(body, target="sm_90", block=1)[0] == 0


def test_a_bf16_product_rounds_once():
    """0x1.02p-67 * 0x1.0ap-67 = 0x1.0c14p-134: below half of the least subnormal's step only if rounded once."""
    a, b = 0x1E01, 0x1E05
    exact = np.float64(np.uint32(a << 16).view(np.float32)) * np.float64(np.uint32(b << 16).view(np.float32))
    expected = int(np.floor(exact / 2.0**-133 + 0.5))
    body = f"mov.b16 %h0, {a}; mov.b16 %h1, {b}; mul.rn.bf16 %h2, %h0, %h1; cvt.u32.u16 %v, %h2; st.global.u32 [%p], %v;"
    assert run(body, target="sm_90", block=1)[0] == expected
