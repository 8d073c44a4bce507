"""What sm_90 adds beside wgmma: vectors of atomics, a leader that the seed elects, more shared memory, targets of one device."""

import numpy as np
import ptxsim
import pytest
from truth import module_text

HEAD = """.visible .entry k(.param .u64 out, .param .u64 old)
{
  .reg .b64 %o, %old, %x; .reg .b32 %t, %n, %a<8>; .reg .b16 %h<8>; .reg .f32 %f<8>; .reg .pred %p;
  ld.param.u64 %o, [out]; ld.param.u64 %old, [old]; mov.u32 %t, %tid.x; cvt.rn.f32.u32 %f0, %t;
"""


def run(body, seed=0, target="sm_90", block=32, dtype=np.float32, size=64, checks=None):
    dev = ptxsim.Device("sm_90", seed=seed, threads=1, checks=checks)
    out, old = dev.tensor(np.zeros(size, dtype), "out"), dev.tensor(np.zeros(size, dtype), "old")
    kernel = ptxsim.load_ptx(module_text(target, [HEAD + body + "\n  ret;\n}\n"])).kernel("k")
    dev.launch(kernel, 1, block, [out, old])
    return out.numpy().copy(), old.numpy().copy()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_vector_atomics_of_f32(count, seed):
    """Thirty-two lanes add to one vector; each sees what was there before it, element by element."""
    names = ", ".join(["%f0", "%f1", "%f2", "%f3"][:count])
    got = ", ".join(["%f4", "%f5", "%f6", "%f7"][:count])
    constants = "mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f40000000; mov.f32 %f3, 0f40400000;"
    out, _ = run(f"{constants} red.global.add.v{count}.f32 [%o], {{{names}}};", seed)
    assert out[:4].tolist() == [496, 32, 64, 96][:count] + [0] * (4 - count)
    out, old = run(f"{constants} atom.global.add.v{count}.f32 {{{got}}}, [%o], {{{names}}};"
                   f"mul.wide.u32 %x, %t, 4; add.u64 %old, %old, %x; st.global.f32 [%old], %f5;", seed)
    assert out[:4].tolist() == [496, 32, 64, 96][:count] + [0] * (4 - count)
    assert sorted(old[:32].tolist()) == list(range(32))


@pytest.mark.parametrize("kind, count", [("f16x2", 2), ("bf16x2", 4), ("f16", 8)])
def test_vector_atomics_of_halves(kind, count):
    one = {"f16x2": "0x3c003c00", "bf16x2": "0x3f803f80", "f16": "0x3c00"}[kind]
    registers = [f"%{'h' if kind == 'f16' else 'a'}{i}" for i in range(count)]
    width = 16 if kind == "f16" else 32
    body = " ".join(f"mov.b{width} {r}, {one};" for r in registers)
    out, _ = run(f"{body} red.global.add.noftz.v{count}.{kind} [%o], {{{', '.join(registers)}}};", dtype=np.uint16)
    elements = count * (1 if kind == "f16" else 2)
    thirty_two = 0x5000 if kind.startswith("f16") else 0x4200
    assert out[:16].tolist() == [thirty_two] * elements + [0] * (16 - elements)


@pytest.mark.parametrize("line", ["red.global.add.v4.f32 [%o + 8], {%f0, %f0, %f0, %f0};",
                                  "atom.global.add.v2.f32 {%f1, %f2}, [%o + 4], {%f0, %f0};"])
def test_a_vector_atomic_is_aligned_to_its_size(line):
    with pytest.raises(ptxsim.Misaligned):
        run(line)


def test_earlier_targets_have_no_vector_atomics():
    with pytest.raises(ptxsim.Unsupported, match="sm_90"):
        run("red.global.add.v4.f32 [%o], {%f0, %f0, %f0, %f0};", target="sm_80")


def test_the_leader_is_the_seeds_choice_and_always_the_same():
    body = ("setp.lt.u32 %p, %t, 16; selp.b32 %n, 0xffff, 0xffff0000, %p; elect.sync %a0|%p, %n; elect.sync %a1|%p, %n;"
            "selp.b32 %a2, 100, 0, %p; add.u32 %a2, %a2, %a1; mul.wide.u32 %x, %t, 4; add.u64 %o, %o, %x; add.u64 %old, %old, %x;"
            "st.global.u32 [%o], %a2; st.global.u32 [%old], %a0;")
    leaders = set()
    for seed in range(12):
        second, first = run(body, seed, dtype=np.uint32)
        for half in (0, 16):
            leader = int(first[half])
            assert half <= leader < half + 16 and (first[half:half + 16] == leader).all()
            assert second[half:half + 16].tolist() == [leader + 100 * (t == leader) for t in range(half, half + 16)]
        leaders.add(int(first[0]))
    assert len(leaders) > 3


def dynamic(nbytes, profile="sm_90a"):
    kernel = ptxsim.load_ptx(module_text("sm_90", [HEAD + "ret;\n}\n"])).kernel("k")
    ptxsim.set_smem_limit(kernel, nbytes)
    dev = ptxsim.Device(profile)
    dev.launch(kernel, 1, 32, [dev.tensor(np.zeros(4), "out"), dev.tensor(np.zeros(4), "old")], smem=nbytes)


@pytest.mark.parametrize("profile", ["sm_90", "sm_90a", "sm_100", "sm_103"])
def test_227_kilobytes_of_shared_memory(profile):
    dynamic(227 * 1024, profile)
    with pytest.raises(ptxsim.LaunchLimit, match="232448"):
        dynamic(227 * 1024 + 16, profile)


@pytest.mark.parametrize("target, profile, runs", [("sm_90a", "sm_90", True), ("sm_90a", "sm_100", False), ("sm_90", "sm_120", True),
                                                   ("sm_100a", "sm_103", False), ("sm_103a", "sm_103", True)])
def test_code_of_an_a_target_runs_on_its_device_alone(target, profile, runs):
    kernel = ptxsim.load_ptx(module_text(target, [HEAD + "ret;\n}\n"])).kernel("k")
    dev = ptxsim.Device(profile)
    tensors = [dev.tensor(np.zeros(4), "out"), dev.tensor(np.zeros(4), "old")]
    if runs:
        dev.launch(kernel, 1, 32, tensors)
    else:
        with pytest.raises(ptxsim.BadProgram, match=target):
            dev.launch(kernel, 1, 32, tensors)
