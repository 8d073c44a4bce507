"""TMA pipelines, clusters and dependent launches: known answers under fifty seeds, and planted bugs that every seed finds."""

import re
from dataclasses import dataclass

import numpy as np
import ptxsim
import pytest
from conftest import CASES

SEEDS = range(50)
RNG = np.random.default_rng(0)


def device(seed, threads=1, checks=None):
    return ptxsim.Device(profile="sm_90", seed=seed, threads=threads, checks=checks)


@pytest.fixture(scope="module")
def case(compile_case):
    return compile_case("tma", arch="sm_90")


def run_pipeline(module, seed, rows=61, swizzle=0, box_rows=8):
    dev = device(seed)
    x = RNG.integers(0, 1000, (rows, 32)).astype(np.int32)
    source, out = dev.tensor(x, name="x"), dev.empty((rows,), np.int32, "out")
    box = dev.tensor_map(source, "INT32", [32, rows], [128], [32, box_rows], swizzle=swizzle)
    counters = dev.launch(module.kernel("pipeline"), 1, 96, [box, out, np.int32(rows)])
    return out.numpy(), x.sum(1), counters


def test_a_pipeline_of_three_stages(case):
    for seed in SEEDS:
        got, expected, counters = run_pipeline(case, seed)
        np.testing.assert_array_equal(got, expected)
        assert counters["bulk_shared_bytes"] == 64 * 128 and counters["bulk_global_bytes"] == 61 * 128


@pytest.mark.parametrize("rows", [16, 7, 1])
def test_a_box_of_another_height_is_caught(case, rows):
    """The expected bytes are those of 8 rows."""
    for seed in range(12):
        with pytest.raises((ptxsim.Deadlock, ptxsim.Race, ptxsim.Undefined), match="mbarrier|bulk|shared"):
            run_pipeline(case, seed, box_rows=rows)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_a_sum_over_the_shared_memory_of_a_cluster(case, size):
    x = RNG.integers(0, 100, (2 * size, 64)).astype(np.int32)
    for seed in SEEDS if size == 4 else range(8):
        dev = device(seed, threads=2)
        source, out = dev.tensor(x, name="x"), dev.empty(x.shape, np.int32, "out")
        dev.launch(case.kernel("cluster_sum"), 2 * size, 64, [source, out], cluster=size)
        np.testing.assert_array_equal(out.numpy(), np.repeat(x.reshape(2, -1).sum(1), size * 64).reshape(x.shape))


def test_bins_in_the_shared_memory_of_a_cluster(case):
    x = RNG.integers(0, 64, 512).astype(np.int32)
    for seed in SEEDS:
        dev = device(seed)
        source, out = dev.tensor(x, name="x"), dev.empty((64,), np.int32, "out")
        dev.launch(case.kernel("cluster_bins"), 4, 128, [source, out])
        np.testing.assert_array_equal(out.numpy(), np.bincount(x, minlength=64))


def test_multicast(case):
    x = RNG.integers(0, 1000, (40, 32)).astype(np.int32)
    for seed in SEEDS:
        dev = device(seed)
        source, out = dev.tensor(x, name="x"), dev.empty((2, 32), np.int32, "out")
        box = dev.tensor_map(source, "INT32", [32, 40], [128], [32, 4])
        dev.launch(case.kernel("multicast"), 2, 32, [box, out, np.int32(5)])
        np.testing.assert_array_equal(out.numpy(), np.stack([x.sum(0)] * 2))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_copies_between_shared_memories(case, size):
    x = RNG.integers(0, 1000, (size, 32)).astype(np.int32)
    for seed in SEEDS:
        dev = device(seed)
        source, out = dev.tensor(x, name="x"), dev.empty(x.shape, np.int32, "out")
        dev.launch(case.kernel("ring"), size, 32, [source, out], cluster=size)
        np.testing.assert_array_equal(out.numpy(), np.roll(x, 1, 0))


# ---- elect ----

ELECT = """.visible .entry k(.param .u64 out)
{
  .reg .b64 %p; .reg .b32 %r; .reg .pred %q;
  ld.param.u64 %p, [out];
  elect.sync %r|%q, -1;
  @%q st.global.u32 [%p], %r;
  ret;
}
"""


def test_the_elected_lane_is_the_seeds_or_the_lowest():
    from truth import module_text

    kernel, leaders = ptxsim.load_ptx(module_text("sm_90", [ELECT])).kernel("k"), {True: set(), False: set()}
    for on, found in leaders.items():
        for seed in range(20):
            dev = device(seed, checks={"elect": on})
            out = dev.empty((1,), np.int32, "out")
            dev.launch(kernel, 1, 32, [out])
            found.add(out.numpy()[0])
    assert len(leaders[True]) > 5 and leaders[False] == {0}


# ---- cluster shapes ----

SHAPES = """.visible .entry k(.param .u64 out)
{
  .reg .b64 %p, %a; .reg .b32 %r<8>;
  ld.param.u64 %p, [out];
  mov.u32 %r0, %ctaid.x; mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ctaid.y; mad.lo.u32 %r0, %r2, %r1, %r0;
  mul.wide.u32 %a, %r0, 32; add.u64 %p, %p, %a;
  mov.u32 %r0, %clusterid.x; mov.u32 %r1, %clusterid.y; mov.u32 %r2, %cluster_ctaid.x; mov.u32 %r3, %cluster_ctaid.y;
  st.global.v4.b32 [%p], {%r0, %r1, %r2, %r3};
  mov.u32 %r0, %cluster_ctarank; mov.u32 %r1, %cluster_nctarank; mov.u32 %r2, %nclusterid.x; mov.u32 %r3, %cluster_nctaid.y;
  st.global.v4.b32 [%p+16], {%r0, %r1, %r2, %r3};
  ret;
}
"""


def test_special_registers_of_a_cluster():
    from truth import module_text

    dev = device(0)
    out = dev.empty((6, 4, 8), np.int32, "out")
    dev.launch(ptxsim.load_ptx(module_text("sm_90", [SHAPES])).kernel("k"), (4, 6), 1, [out], cluster=(2, 3))
    y, x = np.mgrid[:6, :4]
    expected = [x // 2, y // 3, x % 2, y % 3, x % 2 + y % 3 * 2, 0 * x + 6, 0 * x + 2, 0 * x + 3]
    np.testing.assert_array_equal(out.numpy(), np.stack(expected, -1))


@pytest.mark.parametrize("grid, cluster, says", [(6, 4, "multiple"), (16, 16, "16 CTAs > 8"), (3, (3, 2), "multiple")])
def test_clusters_that_do_not_fit(case, grid, cluster, says):
    dev = device(0)
    x, out = dev.tensor(np.zeros(1024, np.int32), name="x"), dev.empty((1024,), np.int32, "out")
    with pytest.raises(ptxsim.LaunchLimit, match=says):
        dev.launch(case.kernel("cluster_sum"), grid, 64, [x, out], cluster=cluster)
    with pytest.raises(ptxsim.LaunchLimit, match="4x1x1"):
        dev.launch(case.kernel("cluster_bins"), 4, 64, [x, out], cluster=2)


# ---- dependent launch ----


def run_dependent(case, second, seed, programmatic=True):
    dev, n = device(seed), 200
    parts, table = dev.empty((n,), np.int32, "parts"), dev.tensor(np.arange(64, dtype=np.int32), name="table")
    out = dev.empty((n,), np.int32, "out")
    dev.launch(case.kernel("first_half"), 4, 64, [parts, np.int32(n)])
    dev.launch(case.kernel(second), 4, 64, [parts, table, out, np.int32(n)], programmatic=programmatic)
    np.testing.assert_array_equal(out.numpy(), np.arange(n) % 64 + 3 * np.arange(n)[::-1])


@pytest.mark.parametrize("second", ["second_half_ok", "second_half_by_one"])
def test_a_dependent_launch(case, second):
    for seed in SEEDS:
        run_dependent(case, second, seed)


def test_a_dependent_launch_that_does_not_wait(case):
    for seed in SEEDS:
        with pytest.raises(ptxsim.Race, match="prerequisite grid.*parts.*first_half") as caught:
            run_dependent(case, "second_half_bug", seed)
        assert int(caught.value.source.split(",")[0].rsplit(":", 1)[1]) in marked_lines("tma", "second_half")
    run_dependent(case, "second_half_bug", 0, programmatic=False)  # without the attribute it starts later


# ---- planted bugs ----


def marked_lines(file, name):
    lines = (CASES / f"{file}.cu").read_text().splitlines()
    return {i for i, line in enumerate(lines, 1) if re.search(rf"@{name}\b", line)}


@dataclass(frozen=True)
class Planted:
    name: str
    says: str
    errors: object = ptxsim.Race
    grid: int = 1


BUGS = [
    Planted("full_not_awaited", "bulk copy"), Planted("released_before_read", "bulk copy|copy overwrites|race"),
    Planted("refilled_without_proxy_fence", "fence.proxy.async"), Planted("stored_without_proxy_fence", "fence.proxy.async"),
    Planted("overwritten_without_proxy_fence", "a copy overwrites.*fence.proxy.async"),
    Planted("fence_after_the_barrier", "fence.proxy.async"), Planted("read_wait_dropped", "bulk store"),
    Planted("store_not_committed", "never committed"), Planted("init_without_fence", "mbarrier.init"),
    Planted("copied_over_unread_words", "race"),
    Planted("cluster_barrier_dropped", "cluster|undefined", (ptxsim.Race, ptxsim.Undefined), 2),
    Planted("relaxed_arrival", "cluster", grid=2), Planted("ends_too_early", "cluster", grid=2),
    Planted("ends_before_the_copy", "none of its threads has waited"),
    Planted("remote_write_unordered", "race", grid=2),
    Planted("one_warp_waits", "cluster|undefined", (ptxsim.Race, ptxsim.Undefined), 2),
]  # fmt: skip
EVERY_BUG = pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)


def launch(bug, twin, compile_case, seed, checks=None):
    dev = device(seed, checks=checks)
    x = dev.tensor(np.arange(256, dtype=np.int32), name="x")
    out = dev.empty((128,), np.int32, "out")
    dev.launch(compile_case("planted_tma", arch="sm_90").kernel(f"{bug.name}_{twin}"), bug.grid, 64, [x, out])
    return out


@EVERY_BUG
def test_caught_at_its_line_under_every_seed(bug, compile_case):
    for seed in SEEDS:
        with pytest.raises(bug.errors, match=f"(?is){bug.says}") as caught:
            launch(bug, "bug", compile_case, seed)
        source = caught.value.source
        lines = {int(line) for file, line in re.findall(r"([\w.]+):(\d+)", source) if file == "planted_tma.cu"}
        assert lines & marked_lines("planted_tma", bug.name), (seed, source, str(caught.value))


@EVERY_BUG
def test_correct_twin_raises_nothing(bug, compile_case):
    for seed in SEEDS:
        launch(bug, "ok", compile_case, seed)


# A read before the copy that overwrites it (WAR) is a check of its own; a write before a copy (WAW) or a store (RAW) is not
# among it.
@pytest.mark.parametrize("name, switch, other", [("refilled_without_proxy_fence", "proxy_war", "proxy"),
                                                 ("overwritten_without_proxy_fence", "proxy", "proxy_war"),
                                                 ("stored_without_proxy_fence", "proxy", "proxy_war"),
                                                 ("init_without_fence", "init_fence", "proxy_war")])
def test_one_switch_lets_a_missing_proxy_fence_pass(name, switch, other, compile_case):
    bug = next(b for b in BUGS if b.name == name)
    for seed in range(10):
        got = launch(bug, "bug", compile_case, seed, {switch: False}).numpy()[:64]
        np.testing.assert_array_equal(got, launch(bug, "ok", compile_case, seed).numpy()[:64])
        with pytest.raises(ptxsim.Race, match="fence.proxy.async|mbarrier.init"):
            launch(bug, "bug", compile_case, seed, {other: False})
