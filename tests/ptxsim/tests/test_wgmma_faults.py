"""A GEMM whose producer and consumers hand tiles over by mbarriers, compiled by nvcc: right under fifty seeds, and every
planted fault stopped under each. A fault of synchronisation is an error at the line that suffers from it; one of
addresses is an error or a wrong result."""

import re

import ptxsim
import pytest
from wgmma_gemm import K, M, N, run


@pytest.fixture(scope="module")
def text(compile_case):
    return compile_case("wgmma_gemm", arch="sm_90a").text


def changed(text, old, new, count=1, nth=0):
    """The text with the nth of `count` occurrences of a pattern replaced."""
    found = list(re.finditer(old, text))
    assert len(found) == count, (old, len(found))
    at = found[nth]
    return text[: at.start()] + at.expand(new) + text[at.end() :]


@pytest.mark.parametrize("seed", range(50))
def test_the_gemm_is_right_under_every_seed(text, seed):
    right, counters = run(text, seed)
    assert right and counters["wgmma_flop"] == 2 * M * N * K
    assert counters["inst_wgmma"] == 8 * K // 16


FENCE, COMMIT, WAIT = (f"wgmma.{x}.sync.aligned" for x in ("fence", "commit_group", "wait_group"))
# The pattern and what replaces it, how often it occurs and which one is meant, the error, the opcode at its line.
SYNCHRONISATION = {
    "proxy fence dropped": (r"fence\.proxy\.async\.shared::cta;", "", 1, 0, ptxsim.Race, "wgmma.mma_async"),
    "wgmma.fence dropped": (r"wgmma\.fence\.sync\.aligned;", "", 1, 0, ptxsim.Race, "wgmma.mma_async"),
    "commit dropped": (r"wgmma\.commit_group\.sync\.aligned;", "", 1, 0, ptxsim.Race, ""),
    "wait_group 1 to 2": (r"wgmma\.wait_group\.sync\.aligned 1;", "wgmma.wait_group.sync.aligned 2;", 1, 0, ptxsim.Race, "st.shared"),
    "wait_group 0 to 1": (r"wgmma\.wait_group\.sync\.aligned 0;", "wgmma.wait_group.sync.aligned 1;", 1, 0, ptxsim.Race, "st.global"),
    "wait dropped": (r"wgmma\.wait_group\.sync\.aligned 0;", "", 1, 0, ptxsim.Race, "st.global"),
    "empty count 8 to 7": (r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\]), 8;", r"\1, 7;", 2, 0, (ptxsim.Deadlock, ptxsim.Race), ""),
    "empty count 8 to 1": (r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\]), 8;", r"\1, 1;", 2, 1, (ptxsim.Deadlock, ptxsim.Race), ""),
    "full count 128 to 96": (r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\]), 128;", r"\1, 96;", 2, 0, (ptxsim.Deadlock, ptxsim.Race), ""),
    "full count 128 to 129": (r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\]), 128;", r"\1, 129;", 2, 1, ptxsim.Deadlock, ""),
    "setmaxnreg 232 to 240": (r"setmaxnreg\.inc\.sync\.aligned\.u32 232;", "setmaxnreg.inc.sync.aligned.u32 240;", 1, 0,
                              ptxsim.Deadlock, "setmaxnreg"),
    "setmaxnreg.dec dropped": (r"setmaxnreg\.dec\.sync\.aligned\.u32 40;", "", 1, 0, ptxsim.Deadlock, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", SYNCHRONISATION)
def test_a_fault_of_synchronisation_is_an_error_at_its_line(text, name):
    old, new, count, nth, kind, opcode = SYNCHRONISATION[name]
    broken = changed(text, old, new, count, nth)
    for seed in range(10):
        with pytest.raises(kind) as caught:
            run(broken, seed)
        where = str(caught.value) if kind is ptxsim.Deadlock else caught.value.ptx_text  # a deadlock names all who wait
        assert opcode in where, (seed, str(caught.value))


def test_parity_flipped(text):
    """The producer's wait passes when it should block, or blocks when it should pass; so does the consumers'."""
    waits = list(re.finditer(r"mbarrier\.try_wait\.parity\.shared::cta\.b64 (\w+), \[(%r\d+)\], (%r\d+);", text))
    assert len(waits) == 2
    for wait in waits:
        flipped = f"xor.b32 {wait[3]}, {wait[3]}, 1; {wait[0]} xor.b32 {wait[3]}, {wait[3]}, 1;"
        broken = text.replace(wait[0], flipped)
        for seed in range(10):
            with pytest.raises((ptxsim.Race, ptxsim.Deadlock, ptxsim.Undefined)):
                run(broken, seed)


def test_release_before_the_wait(text):
    """Consumers give a stage back before their wgmma has been waited for."""
    wait = "wgmma.wait_group.sync.aligned 1;"
    broken = text.replace(wait, "", 1)
    arrive = list(re.finditer(r"mbarrier\.arrive\.shared::cta\.b64 _, \[%r\d+\];", broken))
    at = arrive[-1].end()
    broken = broken[:at] + "\n" + broken[at:]
    for seed in range(10):
        with pytest.raises(ptxsim.Race) as caught:
            run(broken, seed)
        assert "st.shared" in caught.value.ptx_text, str(caught.value)


def test_one_release_by_a_warpgroup_takes_the_switch(text):
    """A single thread gives the stage back for four warps, which nothing has brought together: FA3 does so."""
    text = re.sub(r"(mbarrier\.init\.shared::cta\.b64 \[%r\d+\]), 8;", r"\1, 2;", text)
    text = changed(text, r"(and\.b32 \s*%r\d+, %r1), 31;", r"\1, 127;")
    stopped = 0
    for seed in range(10):
        try:
            run(text, seed)
        except ptxsim.Race:
            stopped += 1
        assert run(text, seed, checks={"release_by_warp": False})[0]
    assert stopped == 10


ADDRESSES = {
    "stride": lambda bits: bits + (1 << 32),
    "stride halved": lambda bits: bits ^ (96 << 32),
    "swizzle 128 to 64": lambda bits: bits ^ (3 << 62),
    "no swizzle": lambda bits: bits & ~(3 << 62),
    "base offset": lambda bits: bits | 1 << 49,
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_fault_of_descriptors_is_an_error_or_a_wrong_result(text, name):
    constants = set(re.findall(r"\b(4611686\d+)\b", text))
    assert constants
    broken = text
    for constant in constants:
        broken = broken.replace(constant, str(ADDRESSES[name](int(constant))))
    for seed in range(3):
        try:
            right, _ = run(broken, seed)
        except ptxsim.SimError:
            continue
        assert not right


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_wrong_step_of_k_is_an_error_or_a_wrong_result(text, step):
    """The second of four products begins at another piece of 16 bytes than the third of its row."""
    base = 64 << 32 | 1 << 62
    assert text.count(str(base + 2)) == 2
    broken = text.replace(str(base + 2), str(base + step))
    for seed in range(3):
        try:
            right, _ = run(broken, seed)
        except ptxsim.SimError:
            continue
        assert not right
