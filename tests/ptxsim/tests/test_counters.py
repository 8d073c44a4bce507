"""Counters of a launch where the right number is known, and the tables of ptxsim.report."""

import numpy as np
import ptxsim
import ptxsim.report as report
import pytest
from programs import gemm_problem, run_gemm, transpose
from truth import module_text

ENTRY = """.visible .entry k(.param .u64 in, .param .u64 out)
{{
  .reg .b64 %x, %y, %o; .reg .b32 %t, %v, %s; .reg .pred %p; .reg .f32 %f;
  .shared .align 16 .b8 room[8192];
  ld.param.u64 %x, [in]; ld.param.u64 %y, [out];
  mov.u32 %t, %tid.x; mov.u32 %s, room;
  {body}
  ret;
}}
"""


def count(body, block=32, grid=1):
    dev = ptxsim.Device(profile="sm_80")
    kernel = ptxsim.load_ptx(module_text("sm_80", [ENTRY.format(body=body)])).kernel("k")
    memory = [dev.tensor(np.zeros(65536, np.float32), name=n) for n in ("in", "out")]
    return dev.launch(kernel, grid, block, memory)


@pytest.mark.parametrize("stride, sectors", [(4, 4), (8, 8), (16, 16), (32, 32), (128, 32), (0, 1)])
def test_global_sectors(stride, sectors):
    counters = count(f"mul.wide.u32 %o, %t, {stride}; add.u64 %x, %x, %o; ld.global.u32 %v, [%x];")
    assert counters["global_sectors"] == sectors
    assert counters["global_distinct_bytes"] == (4 if stride == 0 else 128)


@pytest.mark.parametrize("stride, wavefronts", [(4, 1), (8, 2), (16, 4), (128, 32), (132, 1), (0, 1), (12, 1), (64, 16)])
def test_bank_conflicts_of_words(stride, wavefronts):
    counters = count(f"mad.lo.u32 %s, %t, {stride}, %s; st.shared.u32 [%s], %t;" if stride else
                     "setp.eq.u32 %p, %t, 0; @%p st.shared.u32 [%s], %t; bar.warp.sync -1; ld.shared.u32 %v, [%s];")
    assert counters["shared_wavefronts"] == wavefronts + (stride == 0)


@pytest.mark.parametrize("vector, bytes_, ideal", [("v2.u32 [%s], {%t, %t}", 8, 2), ("v4.u32 [%s], {%t, %t, %t, %t}", 16, 4)])
def test_wide_accesses_take_more_wavefronts_without_conflicts(vector, bytes_, ideal):
    counters = count(f"mad.lo.u32 %s, %t, {bytes_}, %s; st.shared.{vector};")
    assert counters["shared_wavefronts"] == counters["shared_wavefronts_ideal"] == ideal


@pytest.mark.parametrize("stride, ratio", [(16, 1), (80, 1), (64, 4), (128, 8)])
def test_bank_conflicts_of_ldmatrix(stride, ratio):
    counters = count(f"""mad.lo.u32 %v, %t, {stride}, %s; st.shared.v4.u32 [%v], {{%t, %t, %t, %t}}; bar.warp.sync -1;
        .reg .b32 %r<4>; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r0, %r1, %r2, %r3}}, [%v];""")
    stores = counters["shared_wavefronts_ideal"] - 4
    line = next(v for v in counters["ptx_lines"].values() if v["shared_wavefronts_ideal"] == 4 and v["warp_instructions"] == 1 and
                v["shared_wavefronts"] == 4 * ratio)
    assert stores == 4 and line["shared_wavefronts"] / line["shared_wavefronts_ideal"] == ratio


def test_lanes_at_work():
    counters = count("setp.lt.u32 %p, %t, 8; @%p add.u32 %v, %t, 1; @!%p bra OUT; add.u32 %v, %t, 2; add.u32 %v, %t, 3;\nOUT:")
    lines = counters["ptx_lines"].values()
    assert counters["warp_instructions"] == sum(v["warp_instructions"] for v in lines)
    assert 0 < counters["active_lane_fraction"] < 1
    assert counters["thread_instructions"] == pytest.approx(32 * counters["warp_instructions"] * counters["active_lane_fraction"])


def test_exponentials_are_counted_by_lane():
    counters = count("cvt.rn.f32.u32 %f, %t; ex2.approx.ftz.f32 %f, %f; ex2.approx.f32 %f, %f;", block=64, grid=3)
    assert counters["ex2"] == 3 * 64 * 2
    assert counters["inst_special"] == 3 * 2 * 2


def test_barriers_are_counted_by_warp():
    assert count("bar.sync 0; bar.sync 0;", block=96, grid=2)["barriers"] == 2 * 3 * 2


def test_gemm(device, compile_case):
    """Tiles × steps × 2·64·64·32 flop; ldmatrix without conflicts, cp.async with two of 16 bytes on the same banks."""
    module = compile_case("gemm")
    counters = run_gemm(device, module, 128, 64, 160)
    assert counters["mma_flop"] == 2 * 1 * 5 * 2 * 64 * 64 * 32
    assert counters["inst_mma"] == counters["mma_flop"] / (2 * 16 * 8 * 16)
    assert counters["async_bytes"] == 2 * 5 * 2 * 64 * 32 * 2
    text = module.text.splitlines()
    for opcode, ratio in (("ldmatrix", 1), ("cp.async.cg", 2)):
        lines = [v for n, v in counters["ptx_lines"].items() if opcode in text[n - 1]]
        assert lines and all(v["shared_wavefronts"] == ratio * v["shared_wavefronts_ideal"] for v in lines)
    assert counters["global_distinct_bytes"] == (128 + 64) * 160 * 2 + 128 * 64 * 4
    assert len(gemm_problem(8, 8, 8)) == 3


def test_report_names_the_conflicting_line(device, compile_case):
    clean, bad = (transpose(device, compile_case, f"transpose_{kind}") for kind in ("padded", "conflicts"))
    assert not report.conflicts(clean, smallest=1.01)
    (source, accesses, wavefronts, ideal, ratio), = report.conflicts(bad, smallest=1.01)
    assert "transpose.cu:12" in source and ratio > 16 and wavefronts == pytest.approx(ideal * ratio)
    text = report.bank_conflicts(bad)
    assert "transpose.cu:12" in text.splitlines()[2] and f"{wavefronts:,.0f}" in text
    table = report.summary(clean, conflicting=bad)
    line = next(row for row in table.splitlines() if row.startswith("shared_wavefronts "))
    assert line.split()[1:] == [f"{c['shared_wavefronts']:,.0f}" for c in (clean, bad)]
    assert "transpose.cu" in report.hot_lines(bad)


def test_table_aligns_numbers_right():
    assert report.table([("a", 5), ("long", 12345.5)], ("name", "n")).splitlines() == [
        "name           n", "----  ----------", "a              5", "long  12,345.500"]
