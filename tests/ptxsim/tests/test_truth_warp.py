"""Communication inside a warp: shfl, vote, match, redux (PTX ISA 9.7.9 and 9.7.13)."""

from functools import reduce
from random import Random

import pytest
from test_truth_int import value
from truth import Row, check_row, run_row

FULL = 0xFFFFFFFF


def warps(*columns):
    """Cases of one warp from 32-entry columns."""
    return tuple(zip(*columns))


def random_column(seed, bits=32):
    rng = Random(seed)
    return [rng.getrandbits(bits) for _ in range(32)]


def shfl_source(mode, lane, b, c):
    """The lane read from and the predicate, as in the ISA's pseudo-code."""
    offset, clamp, segment = b & 31, c & 31, c >> 8 & 31
    highest = lane & segment | clamp & ~segment & 31
    lowest = lane & segment
    j = {"up": lane - offset, "down": lane + offset, "bfly": lane ^ offset, "idx": lowest | offset & ~segment & 31}[mode]
    valid = j >= highest if mode == "up" else j <= highest
    return (j, 1) if valid else (lane, 0)


def shfl(mode):
    def oracle(cases):
        moves = [shfl_source(mode, lane, b, c) for lane, (_, b, c) in enumerate(cases)]
        return [(cases[j][0], p) for j, p in moves]

    return oracle


def shfl_rows():
    """Uniform offsets with every kind of segment, then one offset a lane."""
    for mode in ("up", "down", "bfly", "idx"):
        table = []
        for width in (32, 16, 8, 4, 2, 1):
            segment = (32 - width) << 8 | (0 if mode == "up" else 31)
            for offset in (0, 1, 2, 3, 7, 16, 31, 32, 33):
                table += warps(random_column(offset), [offset] * 32, [segment] * 32)
        for clamp in (0, 5, 17, 31):
            table += warps(random_column(9), random_column(clamp + 1), [clamp] * 32)
        yield Row(f"shfl.sync.{mode}.b32 %d|%e, %a, %b, %c, 0xffffffff;", ("b32",) * 3, ("b32", "pred"), shfl(mode),
                  tuple(table), across=True)
    yield Row("shfl.sync.bfly.b32 %d, %a, 1, 0x1f, -1;", ("b32",), ("b32",),
              lambda cases: [cases[lane ^ 1][0] for lane in range(32)], warps(random_column(2)), across=True, note="immediate")


def members(cases, pick):
    return [pick(c) for c in cases]


def ballot(bits):
    return sum(b << i for i, b in enumerate(bits))


def vote_rows():
    rng = Random(4)
    predicates = [0] * 32 + [1] * 32 + [int(i == 7) for i in range(32)] + [int(i != 31) for i in range(32)]
    predicates += [rng.randrange(2) for _ in range(64)]
    table = tuple((p,) for p in predicates)
    spread = lambda answer: lambda cases: [(answer([p for (p,) in cases]),)] * 32
    for mode, answer in (("all", lambda p: int(all(p))), ("any", lambda p: int(any(p))), ("uni", lambda p: int(len(set(p)) == 1))):
        yield Row(f"vote.sync.{mode}.pred %d, %a, 0xffffffff;", ("pred",), ("pred",), spread(answer), table, across=True)
        negated = lambda p, f=answer: f([1 - x for x in p])
        yield Row(f"vote.sync.{mode}.pred %d, !%a, 0xffffffff;", ("pred",), ("pred",), spread(negated), table, across=True,
                  note="negated")
    yield Row("vote.sync.ballot.b32 %d, %a, 0xffffffff;", ("pred",), ("b32",), spread(ballot), table, across=True)
    yield Row("activemask.b32 %d;", ("pred",), ("b32",), spread(lambda p: FULL), table, across=True)


def half_rows():
    """Each half of the warp votes under its own mask on its own side of a branch."""
    body = """{{ .reg .b32 %lane;
  mov.u32 %lane, %laneid; setp.lt.u32 %p, %lane, 16;
  @%p bra LOW;
  {op_high}
  bra DONE;
LOW:
  {op_low}
DONE: }}"""
    rng = Random(6)
    flags = tuple((rng.randrange(2),) for _ in range(64))

    def halves(cases):
        low, high = [ballot([p for (p,) in part]) for part in (cases[:16], cases[16:])]
        return [(low,)] * 16 + [(high << 16,)] * 16

    op = body.format(op_high="vote.sync.ballot.b32 %d, %a, 0xffff0000;", op_low="vote.sync.ballot.b32 %d, %a, 0xffff;")
    yield Row(op, ("pred",), ("b32",), halves, flags, across=True, note="ballot_in_halves")
    op = body.format(op_high="shfl.sync.idx.b32 %d, %a, 16, 0x1f, 0xffff0000;", op_low="shfl.sync.idx.b32 %d, %a, 3, 0x1f, 0xffff;")
    yield Row(op, ("b32",), ("b32",), lambda cases: [cases[3]] * 16 + [cases[16]] * 16, warps(random_column(8)), across=True,
              note="shfl_in_halves")
    op = body.format(op_high="activemask.b32 %d;", op_low="mov.b32 %d, 0;")
    yield Row(op, ("pred",), ("b32",), None, flags, across=True, note="activemask_of_a_side")


def match_rows():
    rng = Random(5)
    for kind, width in (("b32", 32), ("b64", 64)):
        pool = [rng.getrandbits(width) for _ in range(4)]
        table = warps([rng.choice(pool) for _ in range(32)]) + warps([pool[0]] * 32) + warps(range(32))

        def match_any(cases):
            return [(ballot([int(x == y) for y in cases]),) for x in cases]

        def match_all(cases):
            same = len(set(cases)) == 1
            return [(FULL * same, int(same))] * 32

        yield Row(f"match.any.sync.{kind} %d, %a, 0xffffffff;", (kind,), ("b32",), match_any, table, across=True)
        yield Row(f"match.all.sync.{kind} %d|%e, %a, 0xffffffff;", (kind,), ("b32", "pred"), match_all, table, across=True)


REDUCTIONS = {"add": int.__add__, "min": min, "max": max, "and": int.__and__, "or": int.__or__, "xor": int.__xor__}


def redux_rows():
    for name, function in REDUCTIONS.items():
        for kind in ("b32",) if name in ("and", "or", "xor") else ("u32", "s32"):
            oracle = lambda cases, f=function, k=kind: [(reduce(f, [value(k, a) for (a,) in cases]) & FULL,)] * 32
            yield Row(f"redux.sync.{name}.{kind} %d, %a, 0xffffffff;", (kind,), (kind,), oracle,
                      warps(random_column(1)) + warps(random_column(2)), across=True)


def lane_mask_rows():
    for name, test in (("eq", int.__eq__), ("lt", int.__lt__), ("le", int.__le__), ("gt", int.__gt__), ("ge", int.__ge__)):
        oracle = lambda cases, t=test: [(ballot([int(t(i, lane)) for i in range(32)]),) for lane in range(32)]
        yield Row(f"mov.u32 %d, %lanemask_{name};", ("b32",), ("b32",), oracle, warps([0] * 32), across=True)
    yield Row("mov.u32 %d, %laneid;", ("b32",), ("b32",), lambda cases: [(i,) for i in range(32)], warps([0] * 32), across=True)
    yield Row("mov.b32 %d, WARP_SZ;", ("b32",), ("b32",), lambda cases: [(32,)] * 32, warps([0] * 32), across=True)


def elect_row():
    return Row("elect.sync %d|%e, 0xffffffff;", ("b32",), ("b32", "pred"), None, warps([0] * 32), "sm_90", across=True)


ROWS = [*shfl_rows(), *vote_rows(), *half_rows(), *match_rows(), *redux_rows(), *lane_mask_rows(), elect_row()]


@pytest.mark.parametrize("row", [r for r in ROWS if r.oracle], ids=lambda r: r.id)
def test_warp(row):
    check_row(row)


def test_activemask_of_one_side_of_a_branch():
    """The engine may split a side further, so the mask is some set of that side's lanes that holds the asking lane."""
    row = next(r for r in ROWS if r.note == "activemask_of_a_side")
    for lane, (mask,) in enumerate(run_row(row)[:32]):
        mask &= FULL
        assert mask == 0 if lane < 16 else mask >> lane & 1 and not mask & 0xFFFF


def test_elect_chooses_one_lane():
    got = run_row(elect_row())
    leaders = [lane for lane, (_, chosen) in enumerate(got) if chosen]
    assert len(leaders) == 1 and all(d & FULL == leaders[0] for d, _ in got)
