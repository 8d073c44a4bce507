"""What the counters say of Hopper's instructions, where the right number is known: under every seed the same."""

import numpy as np
import ptxsim
import pytest
from test_tma import run_pipeline
from test_tma_gemm import run as run_tma_gemm
from truth import module_text
from wgmma_gemm import run as run_wgmma_gemm

SEEDS = range(6)


def same_under_every_seed(run, **expected):
    for seed in SEEDS:
        counters = run(seed)
        assert {name: counters[name] for name in expected} == expected


def test_a_gemm_of_tma_and_wgmma(compile_case):
    """256 x 128 x 256: each of two CTAs loads 128 x 256 of A and of B, and two of its warpgroups read 64 rows of A and all of
    B per product. C leaves by boxes of 128 x 128. Twelve warps meet at one barrier of the CTA and eight at two of the
    consumers; these wait for 4 tiles, one producing thread for 4 free stages."""
    text = compile_case("tma_gemm", arch="sm_90a").text
    ctas, tiles, products = 2, 4, 2 * 16
    same_under_every_seed(
        lambda seed: run_tma_gemm(text, seed, m=256)[1],
        wgmma_flop=2 * 256 * 128 * 256, wgmma_flop_m64n128k16=2 * 256 * 128 * 256, mma_flop=2 * 256 * 128 * 256,
        inst_mma=0, inst_wgmma=ctas * products * 4,
        wgmma_shared_bytes=ctas * products * (64 * 16 + 128 * 16) * 2,
        bulk_shared_bytes=ctas * 2 * 128 * 256 * 2, bulk_global_bytes=ctas * 2 * 128 * 256 * 2,
        bulk_stored_bytes=256 * 128 * 4, bulk_reduced_bytes=0,
        barrier_waits=ctas * (12 + 2 * 8), mbarrier_waits=ctas * (8 * tiles + tiles), wgmma_waits=ctas * 8 * (tiles + 1),
        bulk_waits=ctas, inst_bulk_copy=ctas * (2 * tiles + 3), inst_async_copy=0,
    )  # fmt: skip


def test_without_tma_nothing_is_bulk(compile_case):
    text = compile_case("wgmma_gemm", arch="sm_90a").text
    same_under_every_seed(lambda seed: run_wgmma_gemm(text, seed)[1], bulk_shared_bytes=0, bulk_global_bytes=0, inst_bulk_copy=0)


def test_a_from_registers_is_not_read_from_shared_memory(compile_case):
    """One tile of attention: S = Q K' in 4 products that read Q and K, O = P V in 8 that read V alone, by 2 warpgroups."""
    kernel = compile_case("wgmma_attention", arch="sm_90a").kernel("attention")
    ptxsim.set_smem_limit(kernel, 114688)

    def run(seed):
        dev = ptxsim.Device("sm_90a", seed=seed)
        tensors = [dev.tensor(np.zeros((128, width), np.uint16), "x") for width in (64, 64, 128)]
        out = dev.empty((128, 128), np.float32, "out")
        return dev.launch(kernel, 1, 384, [*tensors, out, np.float32(1)], smem=114688)

    same_under_every_seed(run, wgmma_shared_bytes=2 * (4 * (64 + 128) + 8 * 128) * 16 * 2, wgmma_flop_m64n128k16=2 * 128 * 128 * 192)


def test_rows_past_the_edge_are_written_but_not_read(compile_case):
    """61 rows of 128 bytes in boxes of 8. Two warps wait for 8 tiles, the producer for the stages after the third."""
    module = compile_case("tma", arch="sm_90")
    same_under_every_seed(
        lambda seed: run_pipeline(module, seed)[2], bulk_shared_bytes=64 * 128, bulk_global_bytes=61 * 128, mbarrier_waits=2 * 8 + 5
    )


def test_a_multicast_is_read_once_and_written_by_every_cta(compile_case):
    """Five rounds, in each of which both CTAs load 4 rows of 128 bytes for both."""
    module = compile_case("tma", arch="sm_90")

    def run(seed):
        dev = ptxsim.Device("sm_90", seed=seed, threads=1)
        x = dev.tensor(np.zeros((40, 32), np.int32), name="x")
        box = dev.tensor_map(x, "INT32", [32, 40], [128], [32, 4])
        return dev.launch(module.kernel("multicast"), 2, 32, [box, dev.empty((2, 32), np.int32, "out"), np.int32(5)])

    same_under_every_seed(run, bulk_global_bytes=5 * 2 * 512, bulk_shared_bytes=2 * 5 * 2 * 512, cluster_waits=2 * 2,
                          mbarrier_waits=2 * (5 + 4))


ENTRY = """.visible .entry k(.param .u64 out)
{{
  .reg .b64 %o, %a; .reg .b32 %t, %s, %n; .reg .pred %p, %done; .reg .f32 %f;
  .shared .align 128 .b32 room[32]; .shared .align 8 .b64 bar;
  ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mov.u32 %s, room; mad.lo.u32 %n, %t, 4, %s; cvt.rn.f32.u32 %f, %t;
  {body}
  ret;
}}
"""


def count(body, seed=0, block=32):
    dev = ptxsim.Device("sm_90", seed=seed, threads=1)
    kernel = ptxsim.load_ptx(module_text("sm_90", [ENTRY.format(body=body)])).kernel("k")
    return dev.launch(kernel, 1, block, [dev.tensor(np.zeros(4096, np.float32), name="out")])


@pytest.mark.parametrize("line, sent", [
    ("red.global.add.f32 [%o], %f;", 32 * 4), ("red.global.add.v4.f32 [%o], {%f, %f, %f, %f};", 32 * 16),
    ("atom.global.add.u32 %n, [%o], 1;", 32 * 4), ("atom.add.u64 %a, [%o], 1;", 32 * 8), ("atom.shared.add.u32 %n, [%s], 1;", 0),
    ("setp.lt.u32 %p, %t, 5; @%p red.global.add.f32 [%o], %f;", 5 * 4),
])  # fmt: skip
def test_bytes_that_atomics_send_to_l2(line, sent):
    body = "st.shared.b32 [%s], 0; bar.warp.sync -1;" + line
    same_under_every_seed(lambda seed: count(body, seed), atomic_bytes=sent, bulk_reduced_bytes=0)


def test_a_bulk_reduction_is_none_of_the_atomics():
    reduce = "@%p cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%o], [%s], 128; cp.async.bulk.commit_group;"
    body = f"""st.shared.f32 [%n], %f; fence.proxy.async.shared::cta; bar.sync 0; setp.eq.u32 %p, %t, 0;
        {reduce} cp.async.bulk.wait_group 0;"""
    same_under_every_seed(lambda seed: count(body, seed), bulk_reduced_bytes=128, atomic_bytes=0, bulk_stored_bytes=0, bulk_waits=1)


def test_only_those_who_wait_are_counted_at_barriers():
    """Three warps meet once; then two arrive and the third waits for them."""
    body = "bar.sync 0; setp.lt.u32 %p, %t, 64; @!%p bra WAIT; bar.arrive 1, 96; bra END;\nWAIT: bar.sync 1, 96;\nEND:"
    same_under_every_seed(lambda seed: count(body, seed, block=96), barrier_waits=3 + 1, barriers=3 + 3)


def test_polls_that_come_too_early_are_no_waits():
    body = """setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared::cta.b64 [bar], 64; bar.sync 0;
        mbarrier.arrive.shared::cta.b64 _, [bar];\nW: mbarrier.try_wait.parity.shared::cta.b64 %done, [bar], 0; @!%done bra W;"""
    retries = set()
    for seed in range(20):
        counters = count(body, seed, block=64)
        assert counters["mbarrier_waits"] == 2
        retries.add(counters["mbarrier_retries"])
    assert len(retries) > 1  # they are the seed's
