"""Bulk stores that several lanes of a warp make by one instruction: the same one is no race, as in CUTLASS's epilogues, where
a whole warp stores one box; others are."""

import numpy as np
import ptxsim
import pytest
from truth import module_text

ENTRY = """.visible .entry k(.param .u64 out)
{{
  .reg .b64 %o, %a; .reg .b32 %t, %s, %n, %from; .reg .pred %p;
  .shared .align 128 .b32 room[64];
  ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mov.u32 %s, room;
  mad.lo.u32 %n, %t, 4, %s; st.shared.b32 [%n], %t; fence.proxy.async.shared::cta; bar.sync 0;
  setp.lt.u32 %p, %t, 32; @!%p bra END;
  {body}
  cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
END:
  ret;
}}
"""
STORE = "cp.async.bulk.global.shared::cta.bulk_group [%o], [%from], 64;"
ADD = "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%o], [%from], 64;"
SAME, HALVES = "mov.u32 %from, %s;", "and.b32 %from, %t, 16; add.u32 %from, %from, %s;"


def run(body, seed):
    dev = ptxsim.Device("sm_90", seed=seed, threads=1)
    out = dev.tensor(np.zeros(32, np.uint32), name="out")
    counters = dev.launch(ptxsim.load_ptx(module_text("sm_90", [ENTRY.format(body=body)])).kernel("k"), 1, 64, [out])
    return out.numpy()[:16].tolist(), counters


def test_one_store_by_a_whole_warp_counts_once():
    for seed in range(20):
        got, counters = run(SAME + STORE, seed)
        assert got == list(range(16)) and counters["bulk_stored_bytes"] == 64


def test_other_bytes_to_one_place_are_a_race():
    for seed in range(20):
        with pytest.raises(ptxsim.Race, match="global memory"):
            run(HALVES + STORE, seed)


def test_a_second_instruction_that_stores_the_same_is_a_race():
    for seed in range(20):
        with pytest.raises(ptxsim.Race, match="global memory"):
            run(SAME + "setp.lt.u32 %p, %t, 16; @%p " + STORE + "@!%p " + STORE, seed)


def test_a_reduction_is_done_by_every_lane():
    for seed in range(20):
        got, counters = run(SAME + ADD, seed)
        assert got == [32 * i for i in range(16)] and counters["bulk_reduced_bytes"] == 32 * 64
