"""What puts accesses of different threads in order, a rule a program: membermasks, releases within a block, grid barriers."""

import ctypes

import numpy as np
import ptxsim
import pytest
from test_rules import run

# Membermasks: lanes meet those that give the same one.

# Lanes above 23 come to MEET by another way, on which some lane might leave: nothing makes them wait for the others there.
MEET = """mov.u32 %n, {low}; setp.lt.u32 %z, %t, 16; @!%z mov.u32 %n, {high};
setp.ge.u32 %q, %t, 24; @%q bra LATE;
MEET: {op}
  st.global.u32 [%y], %v; ret;
LATE: setp.eq.u32 %r, %t, 99; @%r ret; {wait} bra MEET;"""
HALVES = {"low": "0xffff", "high": "0xffff0000", "wait": ""}


@pytest.mark.parametrize("op, expected", [
    ("shfl.sync.bfly.b32 %v, %t, 15, 31, %n;", np.arange(32) ^ 15),
    ("vote.sync.ballot.b32 %v, %z, %n;", np.repeat([0xFFFF, 0], 16)),
    ("redux.sync.add.u32 %v, %t, %n;", np.repeat([120, 376], 16)),
    ("match.any.sync.b32 %v, %t, %n;", 1 << np.arange(32, dtype=np.int64)),
    ("bar.warp.sync %n; mov.u32 %v, %t;", np.arange(32)),
])  # fmt: skip
def test_groups_of_lanes_wait_for_their_own(op, expected):
    """The low half is complete when it comes to the instruction, the high one lacks eight lanes."""
    for seed in range(12):
        assert (run(MEET.format(op=op, **HALVES), seed=seed)[:32].view(np.uint32) == expected).all()


@pytest.mark.parametrize("mask, why", [("0x7fff0000", "Lane 31 executes this instruction but is not in its membermask"),
                                       ("0xffff0001", "needs 0xffff0001, lane 0 is elsewhere")])  # fmt: skip
def test_a_group_that_cannot_meet_is_an_error(mask, why):
    """Lane 0 gives another mask, so that it never comes for the high half."""
    for seed in range(6):
        with pytest.raises(ptxsim.Divergence, match=why):
            run(MEET.format(op="shfl.sync.idx.b32 %v, %t, 0, 31, %n;", **HALVES | {"high": mask}), seed=seed)


# Releases within a block: warp 0 writes in[1] and then a flag, warp 1 waits for the flag and reads in[1].


def hand_over(release, flag="[%in]", space="global"):
    return (f".shared .b32 room[1]; mov.u32 %s, room; setp.eq.u32 %q, %t, 0; @%q st.shared.u32 [%s], 0; bar.sync 0;"
            f"setp.eq.u32 %r, %t, 32; @%r bra READER; @!%q bra END; {release} bra END;\nREADER:"
            f"ld.acquire.cta.{space}.u32 %v, {flag}; setp.eq.u32 %z, %v, 0; @%z bra READER;"
            "ld.global.u32 %v, [%in+4]; st.global.u32 [%p], %v;\nEND:")  # fmt: skip


DATA = "st.global.u32 [%in+4], 41;"
ORDERED = [
    DATA + "st.release.cta.global.u32 [%in], 1;",
    DATA + "st.release.gpu.global.u32 [%in], 1;",
    DATA + "red.release.cta.global.add.u32 [%in], 1;",
    DATA + "atom.acq_rel.cta.global.exch.b32 %v, [%in], 1;",
    DATA + "fence.acq_rel.cta; st.relaxed.cta.global.u32 [%in], 1;",
    DATA + "membar.cta; st.volatile.global.u32 [%in], 1;",
    DATA + "membar.gl; red.relaxed.gpu.global.add.u32 [%in], 1;",
]
UNORDERED = [
    DATA + "st.relaxed.cta.global.u32 [%in], 1;",
    DATA + "red.relaxed.gpu.global.add.u32 [%in], 1;",
    DATA + "atom.acquire.cta.global.exch.b32 %v, [%in], 1;",
    "fence.acq_rel.gpu;" + DATA + "st.relaxed.gpu.global.u32 [%in], 1;",
    DATA + "st.relaxed.gpu.global.u32 [%in], 1; fence.acq_rel.gpu;",
    "st.release.gpu.global.u32 [%in], 1;" + DATA,
    DATA + "atom.acq_rel.cta.global.cas.b32 %v, [%in], 7, 1; st.relaxed.cta.global.u32 [%in], 1;",
]


@pytest.mark.parametrize("release", ORDERED)
def test_a_release_orders_warps(release):
    for seed in range(12):
        assert run(hand_over(release), block=64, seed=seed)[0] == 41


@pytest.mark.parametrize("release", UNORDERED)
def test_what_does_not_release_does_not_order_warps(release):
    for seed in range(12):
        with pytest.raises(ptxsim.Race):
            run(hand_over(release), block=64, seed=seed)


@pytest.mark.parametrize("release, ordered", [
    ("st.release.cta.shared.u32 [%s], 1;", True),
    ("fence.acq_rel.cta; st.relaxed.cta.shared.u32 [%s], 1;", True),
    ("membar.cta; atom.shared.exch.b32 %v, [%s], 1;", True),
    ("red.release.cta.shared.add.u32 [%s], 1;", True),
    ("st.relaxed.cta.shared.u32 [%s], 1;", False),
    ("atom.shared.exch.b32 %v, [%s], 1;", False),
])  # fmt: skip
def test_a_flag_in_shared_memory_orders_warps(release, ordered):
    for seed in range(12):
        if ordered:
            assert run(hand_over(DATA + release, "[%s]", "shared"), block=64, seed=seed)[0] == 41
            continue
        with pytest.raises(ptxsim.Race):
            run(hand_over(DATA + release, "[%s]", "shared"), block=64, seed=seed)


def test_a_release_does_not_cover_what_another_block_does_after_it():
    """CTA 1 may read in[1], which was written before the flag, and not in[2]."""
    body = ("setp.ne.u32 %q, %c, 0; @%q bra READER; st.global.u32 [%in+4], 41; st.release.gpu.global.u32 [%in], 1;"
            "st.global.u32 [%in+8], 43; bra END;\nREADER: ld.acquire.gpu.global.u32 %v, [%in]; setp.eq.u32 %q, %v, 0; @%q bra READER;"
            "ld.global.u32 %v, [%in+{at}]; st.global.u32 [%p], %v;\nEND:")  # fmt: skip
    for seed in range(12):
        assert run(body.replace("{at}", "4"), block=1, grid=2, seed=seed)[0] == 41
        with pytest.raises(ptxsim.Race):
            run(body.replace("{at}", "8"), block=1, grid=2, seed=seed)


def test_lanes_of_one_store_may_agree():
    """32 lanes store the same value to one word; two values are a race."""
    assert run("st.global.u32 [%p], 5;")[0] == 5
    with pytest.raises(ptxsim.Race):
        run("and.b32 %v, %t, 1; st.global.u32 [%p], %v;")
    with pytest.raises(ptxsim.Race):
        run("st.global.u32 [%p], 5;", block=64)  # of another warp nothing is known


def test_a_race_explains_the_undefined_value_it_leads_to():
    """Whoever reads first reads what is not yet written; a value that nobody would have written stays an Undefined."""
    copy = "{store} xor.b32 %w, %t, 32; mul.wide.u32 %x, %w, 4; add.u64 %x, %p, %x; ld.global.u32 %v, [%x]; st.global.u32 [%y], %v;"
    for seed in range(12):
        with pytest.raises(ptxsim.Race):
            run(copy.format(store="st.global.u32 [%y], %t;"), block=64, seed=seed)
        with pytest.raises(ptxsim.Undefined):
            run(copy.format(store=""), block=64, seed=seed)


def test_race_warp_turns_off_what_concerns_lanes_alone():
    body = ("st.global.u32 [%y], %t; xor.b32 %w, %t, {other}; mul.wide.u32 %x, %w, 4; add.u64 %x, %p, %x; ld.global.u32 %v, [%x];"
            "bar.sync 0; st.global.u32 [%y], %v;")  # fmt: skip
    assert (run(body.format(other=1), block=64, checks={"race_warp": False}) == np.arange(64) ^ 1).all()
    with pytest.raises(ptxsim.Race):
        run(body.format(other=1), block=64)
    with pytest.raises(ptxsim.Race):
        run(body.format(other=32), block=64, checks={"race_warp": False})


# Cooperative launches.

GRID = """#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void some(int* out, int leaves) {
  if (blockIdx.x >= leaves) return;
  cg::this_grid().sync();
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}
extern "C" __global__ void rounds(int* out, int n) {
  for (int t = 0; t < n; t++) {
    if (blockIdx.x == t % gridDim.x && threadIdx.x == 0) out[0] = t;
    cg::this_grid().sync();
  }
}
extern "C" int start(int* out, int blocks) {
  int all = blocks;
  void* arguments[] = {&out, &all};
  return cudaLaunchCooperativeKernel((void*)some, dim3(blocks), dim3(1024), arguments, 0, 0);
}
"""


@pytest.fixture(scope="module")
def grid_source(nvcc, tmp_path_factory):
    source = tmp_path_factory.mktemp("grid") / "grid.cu"
    source.write_text(GRID)
    return source


def test_a_grid_sync_takes_a_cooperative_launch(grid_source):
    """cooperative_groups finds no workspace then, and traps."""
    dev = ptxsim.Device()
    kernel, out = ptxsim.compile_cu(grid_source).kernel("some"), dev.empty((4,), np.int32, "out")
    dev.launch(kernel, 4, 32, [out, np.int32(4)], cooperative=True)
    assert (out.numpy() == 1).all()
    with pytest.raises(ptxsim.Trap):
        dev.launch(kernel, 4, 32, [out, np.int32(4)])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_block_that_does_not_come_to_the_grid_barrier(grid_source, threads):
    for seed in range(4):
        dev = ptxsim.Device(seed=seed, threads=threads)
        with pytest.raises(ptxsim.Deadlock, match="grid's barrier"):
            dev.launch(ptxsim.compile_cu(grid_source).kernel("some"), 6, 32, [dev.empty((6,), np.int32, "out"), np.int32(4)],
                       cooperative=True)  # fmt: skip


def test_more_grid_barriers_than_the_shadow_has_epochs(grid_source):
    dev = ptxsim.Device()
    out = dev.empty((1,), np.int32, "out")
    dev.launch(ptxsim.compile_cu(grid_source).kernel("rounds"), 3, 32, [out, np.int32(4500)], cooperative=True)
    assert out.numpy()[0] == 4499


def test_the_blocks_of_a_cooperative_launch_fit_the_device(grid_source):
    """108 multiprocessors hold two blocks of 1024 threads each."""
    library = ptxsim.Library([grid_source])
    dev = ptxsim.Device(profile="sm_80")
    out = dev.empty((217,), np.int32, "out")
    with dev:
        assert library.start(ctypes.c_void_p(out.ptr), 216) == 0
    assert (out.numpy()[:216] == 1).all()
    with pytest.raises(ptxsim.LaunchLimit, match="217 CTAs of a cooperative launch > the 216"), dev:
        library.start(ctypes.c_void_p(out.ptr), 217)
    with pytest.raises(ptxsim.LaunchLimit):
        dev.launch(ptxsim.compile_cu(grid_source).kernel("some"), 217, 1024, [out, np.int32(217)], cooperative=True)
