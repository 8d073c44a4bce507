"""ptxsim.mutate: what it changes, how it keeps the score, and that the GEMM case kills its mutants."""

import os
import random
import time

import pytest
from programs import gemm_mutant_check
from ptxsim.mutate import KINDS, mutants_of, run_mutants
from test_tma_gemm import RIGHT
from test_tma_gemm import run as run_tma_gemm
from wgmma_gemm import run as run_wgmma_gemm

TEXT = """.version 9.0
.target sm_80
.address_size 64
.visible .entry small(.param .u64 out)
{
\t.reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %rd<5>;
\tld.param.u64 %rd1, [out];
\tmov.u32 %r1, %tid.x;
\tshr.s32 %r6, %r1, 31;
\tshr.u32 %r7, %r6, 30;
\tadd.s32 %r8, %r1, %r7;
\tsetp.gt.u32 %p1, %r1, 7;
\t@%p1 bra END;
LOOP:
\tmad.wide.u32 %rd2, %r8, 4, %rd1;
\tadd.s32 %r3, %r1, %r2;
\t@!%p1 ld.global.u32 %r2, [%rd2+16];
\tcp.async.wait_group 1;
\tbar.sync 0;
\tbar.sync 1, 64;
\tmembar.gl;
\tldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r2, %r3}, [%r4];
\tselp.b32 %r5, 16, 0, %p1;
\t@%p1 bra LOOP;
\tor.b64 %rd3, %rd4, 4611686293305294848;
\tmbarrier.init.shared::cta.b64 [%r4], 2;
\tmbarrier.arrive.expect_tx.shared::cta.b64 %rd2, [%r4], 64;
\tmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r4], %r3;
\tmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r4], 1;
\twgmma.fence.sync.aligned;
\twgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r2, %r3, %r5, %r6}, %rd3, %rd4, %p1, 1, 1, 0, 0;
\twgmma.commit_group.sync.aligned;
\twgmma.wait_group.sync.aligned 0;
\t@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r5, 8}], [%r4];
END:
\tret;
}
"""
CHANGED = {
    "barrier": [(19, ""), (19, "\tbar.warp.sync 0xffffffff;"), (20, ""), (27, "")],
    "wait": [(18, ""), (18, "\tcp.async.wait_group 2;"), (33, ""), (33, "\twgmma.wait_group.sync.aligned 1;")],
    "predicate": [(13, ""), (13, "\tbra END;"), (17, "\tld.global.u32 %r2, [%rd2+16];"), (23, "\tmov.b32 %r5, 16;"),
                  (23, "\tmov.b32 %r5, 0;"), (24, ""),
                  (34, "\tcp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r5, 8}], [%r4];")],
    "fence": [(21, ""), (30, "")],
    "commit": [(32, "")],
    "parity": [(28, "\txor.b32 %r3, %r3, 1; mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r4], %r3; xor.b32 %r3, %r3, 1;"),
               (29, "\tmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r4], 0;")],
    "count": [(26, "\tmbarrier.init.shared::cta.b64 [%r4], 1;"), (26, "\tmbarrier.init.shared::cta.b64 [%r4], 3;"),
              (27, "\tmbarrier.arrive.expect_tx.shared::cta.b64 %rd2, [%r4], 48;"),
              (27, "\tmbarrier.arrive.expect_tx.shared::cta.b64 %rd2, [%r4], 80;")],
    "descriptor": [(25, "\tor.b64 %rd3, %rd4, 4611686297600262144;"), (25, "\tor.b64 %rd3, %rd4, -9223371761976868864;")],
    "address": [(15, "\tmov.b64 %rd2, %rd1;"), (15, "\tmul.wide.u32 %rd2, %r8, 4;"), (17, "\t@!%p1 ld.global.u32 %r2, [%rd2];")],
    "box": [(34, "\tadd.s32 %r5, %r5, 1; @%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r5, 8}], [%r4]; "
                  "sub.s32 %r5, %r5, 1;"),
            (34, "\t@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r5, 9}], [%r4];")],
    "fragment": [(22, "\tldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r3, %r2}, [%r4];")],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_of_a_small_text(kind):
    """Line 11 rounds a signed quotient and line 16 feeds no address: neither is changed."""
    assert [(m.ptx_line, m.text) for m in mutants_of(TEXT, (kind,))] == CHANGED[kind]


def test_a_mutant_changes_its_line_alone():
    for mutant in mutants_of(TEXT):
        before, after = TEXT.split("\n"), mutant.apply(TEXT).split("\n")
        assert [i + 1 for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [mutant.ptx_line]


def test_other_kernels_and_unknown_kinds():
    assert not mutants_of(TEXT, kernel="absent")
    with pytest.raises(ValueError, match="barrier, wait"):
        mutants_of(TEXT, ("barier",))


def verdict_by_line(text):
    """A stand-in for a simulation that treats each mutant in another way."""
    lines = text.split("\n")
    if "bar.sync 0;" not in text:
        raise AssertionError("wrong sum")
    if "wait_group 2" in text:
        time.sleep(60)
    if "membar.gl" not in text:
        os._exit(7)
    if "{%r3, %r2}" in text:
        raise type("BadProgram", (Exception,), {})("no such thing")
    assert len(lines) == TEXT.count("\n") + 1


def test_the_score():
    report = run_mutants(TEXT, verdict_by_line, kinds=("barrier", "wait", "fence", "fragment"), timeout=1)
    killed = {m.ptx_line: why.split(":")[0] for m, why in report.killed}
    assert killed == {18: "Timeout", 19: "AssertionError", 21: "Crash"}
    assert [m.ptx_line for m in report.survived] == [18, 20, 27, 30, 33, 33]
    assert [m.ptx_line for m, _ in report.invalid] == [22] and [m.ptx_line for m, _ in report.crashed] == [21]
    assert report.rate == pytest.approx(4 / 10) and "bar.sync 1, 64" in str(report) and "4 of 10" in str(report)


def test_a_test_that_fails_anyway_is_refused():
    with pytest.raises(ValueError, match="unchanged"):
        run_mutants("nothing", verdict_by_line)


def test_the_gemm_kills_its_mutants(compile_case):
    """A drawn third of them, and every barrier and wait. All 589 were run once: 581 killed (98.6%)."""
    text = compile_case("gemm").text
    handed_over = mutants_of(text, ("barrier", "wait"))
    drawn = random.Random(0).sample(mutants_of(text, ("predicate", "address", "fragment")), 180)
    report = run_mutants(text, gemm_mutant_check, mutants=handed_over + drawn)
    assert report.rate >= 0.95, str(report)
    assert not report.crashed, str(report)
    for kind in ("barrier", "wait"):
        assert not [m for m in report.survived if m.kind == kind], str(report)


def test_the_wgmma_gemm_kills_its_mutants(compile_case):
    """Every barrier, wait, fence, commit, parity, count and descriptor."""
    def check(text):
        right, _ = run_wgmma_gemm(text, 0)
        assert right

    text = compile_case("wgmma_gemm", arch="sm_90a").text
    kinds = ("barrier", "wait", "fence", "commit", "parity", "count", "descriptor")
    report = run_mutants(text, check, kinds=kinds, timeout=30)
    assert not report.survived and not report.crashed and {m.kind for m, _ in report.killed} == set(kinds), str(report)


def test_the_tma_gemm_kills_its_mutants(compile_case):
    """Every coordinate of its boxes, count, commit, fence and wait."""
    def check(text):
        assert run_tma_gemm(text, 0)[0] == RIGHT

    kinds = ("box", "count", "commit", "fence", "wait")
    report = run_mutants(compile_case("tma_gemm", arch="sm_90a").text, check, kinds=kinds, timeout=60)
    assert not report.survived and not report.crashed and {m.kind for m, _ in report.killed} == set(kinds), str(report)


def test_ptxas_takes_the_mutants_of_the_gemm(compile_case, nvcc, tmp_path):
    """A sample: the changes are programs, so what kills them is their meaning."""
    import subprocess
    from pathlib import Path
    text = compile_case("gemm").text
    for mutant in mutants_of(text)[::12]:
        (tmp_path / "m.ptx").write_text(mutant.apply(text))
        command = [str(Path(nvcc).with_name("ptxas")), "-O0", "-arch", "sm_80", str(tmp_path / "m.ptx"), "-o", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{mutant}\n{done.stderr}"
