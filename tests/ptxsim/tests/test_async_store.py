"""st.async and red.async: stores and reductions in the shared memory of another CTA, counted by an mbarrier there."""

import functools
import operator

import numpy as np
import ptxsim
import pytest
from truth import module_text

SEEDS = range(20)

# %here, %there: this CTA's and the next CTA's `room`, for this lane; %bar, %far: the mbarriers.
ENTRY = """.visible .entry k(.param .u64 x, .param .u64 out)
{{
  .reg .b64 %x, %o, %a, %wide<2>; .reg .b32 %t, %rank, %size, %next, %here, %there, %bar, %far, %v<4>, %w<4>; .reg .f32 %f;
  .reg .pred %first, %done, %p;
  .shared .align 16 .b32 room[256]; .shared .align 8 .b64 bar;
  ld.param.u64 %x, [x]; ld.param.u64 %o, [out]; mov.u32 %t, %tid.x;
  mov.u32 %rank, %cluster_ctarank; mov.u32 %size, %cluster_nctarank;
  add.u32 %next, %rank, 1; rem.u32 %next, %next, %size;
  mov.u32 %bar, bar; mov.u32 %here, room; mad.lo.u32 %here, %t, {bytes}, %here;
  mapa.shared::cluster.u32 %there, %here, %next; mapa.shared::cluster.u32 %far, %bar, %next;
  mad.lo.u32 %v0, %rank, 32, %t; mul.wide.u32 %a, %v0, 16; add.u64 %x, %x, %a; add.u64 %o, %o, %a;
  ld.global.v4.u32 {{%v0, %v1, %v2, %v3}}, [%x];
  setp.eq.u32 %first, %t, 0;
  {before}
  @%first mbarrier.init.shared::cta.b64 [%bar], 1;
  @%first fence.mbarrier_init.release.cluster;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  {body}
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  ret;
}}
"""
EXPECT = "@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {};\n"
WAIT = "W: mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0; @!%done bra W;\n"
STORE = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes"
REDUCE = "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes"


def run(body, seed=0, size=2, bytes=16, before="", target="sm_90", checks=None):
    dev = ptxsim.Device("sm_90", seed=seed, threads=1, checks=checks)
    x = np.random.default_rng(0).integers(0, 2**32, (size, 32, 4), dtype=np.uint32)
    out = dev.tensor(np.zeros_like(x), name="out")
    text = module_text(target, [ENTRY.format(body=body, bytes=bytes, before=before)])
    dev.launch(ptxsim.load_ptx(text).kernel("k"), size, 32, [dev.tensor(x, name="x"), out], cluster=size)
    return x, out.numpy().copy()


FORMS = {
    "b32": ("%v0", 1), "u32": ("%v0", 1), "s32": ("%v0", 1), "f32": ("%f", 1), "b64": ("%wide0", 2), "s64": ("%wide0", 2),
    "v2.b32": ("{%v0, %v1}", 2), "v4.s32": ("{%v0, %v1, %v2, %v3}", 4), "v2.u64": ("{%wide0, %wide1}", 4),
}  # fmt: skip
WIDE = "mov.b64 %wide0, {%v0, %v1}; mov.b64 %wide1, {%v2, %v3}; mov.b32 %f, %v0;\n"


@pytest.mark.parametrize("form", FORMS)
def test_each_form_stores_its_words_in_the_next_cta(form):
    value, words = FORMS[form]
    names = ["%w0", "%w1", "%w2", "%w3"][:words]
    vector = f".v{words}" if words > 1 else ""
    body = (WIDE + EXPECT.format(32 * 4 * words) + f"{STORE}.{form} [%there], {value}, [%far];\n" + WAIT
            + f"ld.shared{vector}.u32 {{{', '.join(names)}}}, [%here];\n".replace("{%w0}", "%w0")
            + f"st.global{vector}.u32 [%o], {{{', '.join(names)}}};\n".replace("{%w0}", "%w0"))
    for size in (2, 3):
        for seed in SEEDS:
            x, out = run(body, seed, size, bytes=4 * words)
            np.testing.assert_array_equal(out[..., :words], np.roll(x, 1, 0)[..., :words])


def signed(word):
    return word - 2**32 if word >> 31 else word


OPERATIONS = {
    "add.u32": operator.add, "add.s32": operator.add, "min.u32": min, "max.u32": max, "and.b32": operator.and_,
    "or.b32": operator.or_, "xor.b32": operator.xor, "inc.u32": lambda a, b: 0 if a >= b else a + 1,
    "dec.u32": lambda a, b: b if a == 0 or a > b else a - 1,
    "min.s32": lambda a, b: min(a, b, key=signed), "max.s32": lambda a, b: max(a, b, key=signed),
}  # fmt: skip
# The first CTA's words begin with their lane's number; all others reduce into them.
FIRST_CTA = "setp.eq.u32 %p, %rank, 0;\n"
AT_FIRST = "mov.u32 %next, 0; mapa.shared::cluster.u32 %there, %here, %next; mapa.shared::cluster.u32 %far, %bar, %next;\n"
REDUCED = "@!%p bra END;\n" + WAIT + "ld.shared.u32 %w0, [%here]; st.global.u32 [%o], %w0;\nEND:\n"


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_reduction(name):
    operand = "1000" if name.startswith(("inc", "dec")) else "%v0"  # one bound for all: the order is the seed's
    body = (FIRST_CTA + AT_FIRST + "and.pred %first, %first, %p;\n" + EXPECT.format(3 * 128)
            + f"@!%p {REDUCE}.{name} [%there], {operand}, [%far];\n" + REDUCED)
    for seed in SEEDS:
        x, out = run(body, seed, 4, bytes=4, before="st.shared.u32 [%here], %t;")
        for lane in range(32):
            values = [1000] * 3 if operand == "1000" else [int(v) for v in x[1:, lane, 0]]
            assert out[0, lane, 0] == functools.reduce(OPERATIONS[name], values, lane) % 2**32


def test_all_lanes_may_add_to_one_word_of_64_bits():
    body = (FIRST_CTA + "mov.u32 %here, room;\n" + AT_FIRST + "and.pred %first, %first, %p;\n" + EXPECT.format(64 * 8)
            + "mov.b64 %wide0, {%v0, %v1};\n" + f"@!%p {REDUCE}.add.u64 [%there], %wide0, [%far];\n"
            + REDUCED.replace("ld.shared.u32 %w0, [%here]; st.global.u32 [%o], %w0;",
                              "ld.shared.v2.u32 {%w0, %w1}, [%here]; st.global.v2.u32 [%o], {%w0, %w1};"))
    for seed in SEEDS:
        x, out = run(body, seed, 3, bytes=8, before="st.shared.v2.u32 [%here], {5, 0};")
        words = x[1:, :, :2].astype(object)
        total = (5 + (words[..., 0] + (words[..., 1] << 32)).sum()) % 2**64
        assert (out[0, :, 0].astype(object) + (out[0, :, 1].astype(object) << 32) == total).all()


ONE = f"{STORE}.b32 [%there], %v0, [%far];\n"
ADD = f"{REDUCE}.add.u32 [%there], %v0, [%far];\n"
READ = "ld.shared.u32 %w0, [%here]; st.global.u32 [%o], %w0;\n"
ALL, OWN = EXPECT.format(128), "mov.u32 %there, %here; mov.u32 %far, %bar;\n"
KNOWN = "st.shared.u32 [%here], 0;"
MEET = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"

# What is wrong, the error and a part of its text; each time followed by the right twin.
RULES = {
    "read before the wait": (ALL + ONE + READ + WAIT, "", (ptxsim.Race, ptxsim.Undefined), "asynchronous store|undefined",
                             ALL + ONE + WAIT + READ),
    "reduced and read before the wait": (ALL + ADD + READ + WAIT, KNOWN, ptxsim.Race, "asynchronous store|read by",
                                         ALL + ADD + WAIT + READ),
    "a cluster barrier is no wait": (ALL + ONE + MEET + READ + WAIT, "", ptxsim.Race, "asynchronous store", ALL + ONE + MEET + WAIT + READ),
    "too few bytes": (EXPECT.format(124) + ONE + WAIT + READ, "", (ptxsim.Race, ptxsim.Deadlock), "mbarrier", ALL + ONE + WAIT + READ),
    "too many bytes": (EXPECT.format(132) + ONE + WAIT + READ, "", ptxsim.Deadlock, "4 bytes to come", ALL + ONE + WAIT + READ),
    "the thread's own CTA": (OWN + ALL + ONE + WAIT + READ, "", ptxsim.BadProgram, "another CTA", ALL + ONE + WAIT + READ),
    "an mbarrier elsewhere": (ALL + ONE.replace("%far", "%bar") + WAIT + READ, "", ptxsim.BadProgram, "mbarrier",
                              ALL + ONE + WAIT + READ),
    "over a word that is being read": (ALL + "ld.shared.u32 %w1, [%here];\n" + ONE + WAIT + READ, KNOWN, ptxsim.Race, "read by|owns",
                                       ALL + "ld.shared.u32 %w1, [%here];\n" + MEET + ONE + WAIT + READ),
    "over a word that is being written": (ALL + "st.shared.u32 [%here], 1;\n" + ONE + WAIT + READ, "", ptxsim.Race, "write by|owns",
                                          ALL + "st.shared.u32 [%here], 1;\n" + MEET + ONE + WAIT + READ),
    "two stores to one word": (EXPECT.format(256) + ONE + ONE + WAIT + READ, "", ptxsim.Race, "owns these bytes", ALL + ONE + WAIT + READ),
    "a store over a reduction": (EXPECT.format(256) + ADD + ONE + WAIT + READ, KNOWN, ptxsim.Race, "owns these bytes",
                                 EXPECT.format(256) + ADD + ADD + WAIT + READ),
    "a reduction of what nobody wrote": (ALL + ADD + WAIT + READ, "", ptxsim.Undefined, "stored to global", ALL + ONE + WAIT + READ),
    "an undefined operand": (ALL + ONE.replace("%v0", "%w2") + WAIT + READ, "", ptxsim.Undefined, "stored to global",
                             ALL + ONE + WAIT + READ),
    "an address between words": (ALL + "add.u32 %there, %there, 2;\n" + ONE + WAIT, "", ptxsim.Misaligned, "asynchronous store",
                                 ALL + ONE + WAIT),
    "the end before it has landed": (ALL + ONE, "", ptxsim.Race, "none of its threads has waited", ALL + ONE + WAIT),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule(name):
    wrong, before, kind, text, right = RULES[name]
    for seed in SEEDS:
        with pytest.raises(kind, match=f"(?s){text}"):
            run(wrong, seed, bytes=4, before=before)
        run(right, seed, bytes=4, before=before if "nobody wrote" not in name else KNOWN)


FOUR_WIDE = "{%wide0, %wide0, %wide0, %wide0}"


@pytest.mark.parametrize("line", [f"{REDUCE}.add.f32 [%there], %f, [%far];", f"{REDUCE}.min.u64 [%there], %wide0, [%far];",
                                  f"{STORE}.b16 [%there], 1, [%far];", f"{STORE}.v4.b64 [%there], {FOUR_WIDE}, [%far];",
                                  "st.async.release.gpu.global.u32 [%o], %v0;"])
def test_what_no_hopper_has_stops_with_its_text(line):
    with pytest.raises(ptxsim.Unsupported) as caught:
        run(WIDE + line)
    assert caught.value.ptx_text.startswith(line.split()[0])


def test_earlier_targets_have_neither():
    with pytest.raises(ptxsim.Unsupported):
        run(ALL + ONE + WAIT, target="sm_80")
