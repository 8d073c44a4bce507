"""The rules of mbarrier objects, a program each: counts, transactions, phases, parities, and reports of deadlocks."""

import re

import numpy as np
import ptxsim
import pytest

HEAD = """.version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 out)
{
  .reg .b64 %o, %x, %state, %old; .reg .b32 %t, %s, %r, %n; .reg .pred %p, %done, %first;
  .shared .align 8 .b64 bars[4]; .shared .align 16 .b32 room[256];
  ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mov.u32 %s, bars; setp.eq.u32 %first, %t, 0;
  mul.wide.u32 %x, %t, 4; add.u64 %o, %o, %x;
"""
FINISH = "\n  ret;\n}\n"


def run(body, block=64, seed=0, checks=None):
    dev = ptxsim.Device("sm_90a", seed=seed, threads=1, checks=checks)
    out = dev.tensor(np.zeros(block, np.int32), "out")
    dev.launch(ptxsim.load_ptx(HEAD + body + FINISH).kernel("k"), 1, block, [out])
    return out.numpy().copy()


def init(count, at=0):
    return f"@%first mbarrier.init.shared::cta.b64 [%s + {at}], {count};\n"


def wait(parity, at=0, name="W", kind="try_wait"):
    return f"{name}: mbarrier.{kind}.parity.shared::cta.b64 %done, [%s + {at}], {parity}; @!%done bra {name};\n"


ARRIVE = "mbarrier.arrive.shared::cta.b64 _, [%s];\n"
EXPECT = "@%first mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%s], {};\n"
SYNC = "bar.sync 0;\n"
DONE = "st.global.u32 [%o], 1;\n"


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("kind", ["try_wait", "test_wait"])
def test_phases_follow_each_other(seed, kind):
    body = init(64) + SYNC + "".join(ARRIVE + wait(i % 2, name=f"W{i}", kind=kind) for i in range(6)) + DONE
    assert run(body, seed=seed).tolist() == [1] * 64


@pytest.mark.parametrize("seed", range(20))
def test_a_state_stands_for_its_phase(seed):
    body = init(64) + SYNC + ("mbarrier.arrive.shared::cta.b64 %state, [%s];\n"
                              "W: mbarrier.try_wait.shared::cta.b64 %done, [%s], %state; @!%done bra W;\n") + DONE
    assert run(body, seed=seed).tolist() == [1] * 64


def test_the_state_tells_the_pending_count():
    body = init(5) + SYNC + "@!%first bra END;\n" + "mbarrier.arrive.shared::cta.b64 %state, [%s], 2;\n" * 2 + (
        "mbarrier.pending_count.b64 %r, %state; st.global.u32 [%o], %r;\nEND:")
    assert run(body)[0] == 3


@pytest.mark.parametrize("seed", range(20))
def test_bytes_may_come_before_they_are_expected(seed):
    """The count of bytes is negative for a while; the phase completes when it is zero and nobody is pending."""
    body = init(2) + SYNC + ("setp.lt.u32 %p, %t, 32; @%p bra CONSUMERS;\n"
                             "setp.eq.u32 %p, %t, 32; @!%p bra END;\n"
                             "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%s], 256;\n"
                             "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s], 512;\n"
                             "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%s], 16;\n"
                             "mbarrier.arrive.shared::cta.b64 _, [%s];\n"
                             "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%s], 272;\nbra END;\n"
                             "CONSUMERS:\n") + wait(0) + DONE + "END:"
    assert run(body, seed=seed).tolist() == [1] * 32 + [0] * 32


DEADLOCKS = {
    "too few bytes": (init(1) + SYNC + "@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s], 512;\n"
                      "@%first mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%s], 496;\n" + wait(0),
                      r"phase 0, 0 of 1 arrivals pending, 16 bytes to come"),
    "too many bytes": (init(1) + SYNC + "@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s], 496;\n"
                       "@%first mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%s], 512;\n" + wait(0),
                       r"phase 0, 0 of 1 arrivals pending, -16 bytes to come"),
    "too few arrivals": (init(65) + init(7, 8) + SYNC + ARRIVE + wait(0),
                         r"warp 1 at PTX line \d+ .*mbarrier 0x400: phase 0, 1 of 65 arrivals pending, 0 bytes to come"
                         r".*mbarrier 0x408: phase 0, 7 of 7"),
    "the wrong parity": (init(64) + SYNC + ARRIVE + wait(0) + wait(0, name="X") + ARRIVE + wait(0, name="Y"),
                         r"mbarrier 0x400: phase 2, 64 of 64 arrivals pending"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEADLOCKS)
def test_a_deadlock_names_every_barrier_and_who_waits(name):
    body, report = DEADLOCKS[name]
    for seed in range(10):
        with pytest.raises(ptxsim.Deadlock, match="try_wait") as caught:
            run(body, seed=seed)
        assert re.search(report, str(caught.value)), str(caught.value)
        assert "for mbarrier 0x400" in str(caught.value)


# The body, the error, a part of its text, a right twin; the check is `mbarrier` but where None.
RULES = {
    "count of zero": (init(0), ptxsim.Undefined, "not in 1", init(1), None),
    "count too large": (init(1 << 20), ptxsim.Undefined, "not in 1", init((1 << 20) - 1), None),
    "init of a live object": (init(1) + init(1), ptxsim.Undefined, "live object",
                              init(1) + "@%first mbarrier.inval.shared::cta.b64 [%s];\n" + init(1), "mbarrier"),
    "init over a neighbour": (init(1) + "@%first mbarrier.init.shared::cta.b64 [%s + 4], 1;\n", (ptxsim.Misaligned,
        ptxsim.Undefined), "", init(1), None),
    "use after inval": (init(1) + "@%first mbarrier.inval.shared::cta.b64 [%s];\n@%first " + ARRIVE, ptxsim.Undefined, "not initialised",
                        init(1) + "@%first " + ARRIVE, None),
    "an ordinary load of it": (init(1) + SYNC + "ld.shared.u32 %r, [%s];\n", ptxsim.Race, "opaque",
        init(1) + SYNC + "@%first ld.shared.u32 %r, [%s + 16];\n", "mbarrier"),
    "an ordinary store to it": (init(1) + SYNC + "@%first st.shared.u32 [%s + 4], 0;\n", ptxsim.Race, "opaque",
        init(1) + SYNC + "@%first st.shared.u32 [%s + 16], 0;\n", "mbarrier"),
    "an arrival of nobody": (init(1) + SYNC + "@%first mbarrier.arrive.shared::cta.b64 _, [%s], 0;\n", ptxsim.Undefined,
        "count 0", init(1) + SYNC, "mbarrier"),
    "too many arrivals": (init(63) + SYNC + ARRIVE + wait(0), (ptxsim.Deadlock, ptxsim.Race), "", init(64) + SYNC + ARRIVE + wait(0), None),
    "too many bytes": (init(1) + SYNC + EXPECT.format(1048575) + EXPECT.format(16),
                       ptxsim.Undefined, "range",
        init(1) + SYNC + EXPECT.format(1048575), "mbarrier"),
    "a phase nobody observed": (init(1) + SYNC + "@%first " + ARRIVE + "@%first " + ARRIVE, ptxsim.Race, "no wait has found",
                                init(1) + SYNC + "@!%first bra END;\n" + ARRIVE + wait(0) + ARRIVE + "END:", "mbarrier"),
    "a wait two phases late": (init(1) + SYNC + "setp.lt.u32 %p, %t, 32; @!%p bra LATE;\n@!%first bra END;\n" + ARRIVE
        + wait(0) + ARRIVE + wait(1, name="X")
                               + "st.volatile.shared.u32 [room], 1; bra END;\nLATE: setp.eq.u32 %p, %t, 32; @!%p bra END;\n"
                               "POLL: ld.volatile.shared.u32 %r, [room + 64]; add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 9999; @%p bra POLL;\n"
                               + wait(0, name="Y") + "END:", (ptxsim.Race, ptxsim.Undefined), "", init(64) + SYNC + ARRIVE + wait(0), None),
    "a parity of two": (init(1) + SYNC + wait(2), ptxsim.Undefined, "neither 0 nor 1", init(64) + SYNC + ARRIVE + wait(0), None),
    "use before the init is ordered": ("setp.eq.u32 %p, %t, 32;\n" + init(1) + "@%p mbarrier.arrive.shared::cta.b64 _, [%s];\n",
        (ptxsim.Race, ptxsim.Undefined), "",
                                       "setp.eq.u32 %p, %t, 32;\n" + init(1) + SYNC + "@%p mbarrier.arrive.shared::cta.b64 _, [%s];\n",
        None),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_mbarriers(name):
    wrong, kind, text, right, check = RULES[name]
    for seed in range(10):
        with pytest.raises(kind) as caught:
            run("mov.u32 %n, 0;\n" + wrong, seed=seed)
        assert text in str(caught.value), str(caught.value)
    for seed in range(20):
        run(right, seed=seed)
    if check:
        run(wrong, checks={check: False})


def test_what_an_arrival_publishes_reaches_those_who_wait():
    give = "mad.lo.u32 %n, %t, 4, %s; st.shared.u32 [%n + 32], %t;\n"
    take = "xor.b32 %n, %t, 32; mad.lo.u32 %n, %n, 4, %s; ld.shared.u32 %r, [%n + 32]; st.global.u32 [%o], %r;\n"
    for seed in range(20):
        assert run(init(64) + SYNC + give + ARRIVE + wait(0) + take, seed=seed).tolist() == [t ^ 32 for t in range(64)]
        relaxed = ARRIVE.replace("arrive.", "arrive.relaxed.cta."), wait(0).replace("parity.", "parity.relaxed.cta.")
        for broken in (init(64) + SYNC + give + relaxed[0] + wait(0) + take, init(64) + SYNC + give + ARRIVE + relaxed[1] + take,
                       init(64) + SYNC + ARRIVE + give + wait(0) + take, init(64) + SYNC + give + ARRIVE + take):
            with pytest.raises((ptxsim.Race, ptxsim.Undefined)):
                run(broken, seed=seed)
