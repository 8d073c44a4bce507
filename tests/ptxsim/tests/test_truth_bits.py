"""Bits, shifts, selection and integer comparison: PTX ISA 9.7.1 (bit fields), 9.7.6, 9.7.7, 9.7.8."""

from random import Random

import pytest
from float_oracles import compare
from test_truth_int import KINDS, MASK32, bytes_of, row, value, wrap
from truth import WIDTHS, Row, cases, check_row

SHIFTS = (0, 1, 4, 7, 15, 16, 31, 32, 33, 63, 64, 65, 255, 256, 0x80000000, MASK32)


def with_amounts(kind, amounts=SHIFTS):
    return tuple((a, s) for (a,) in cases(kind, extra=4) for s in amounts)


def logic_rows():
    for kind in ("b16", "b32", "b64"):
        for name, function in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
            yield row(f"{name}.{kind}", kind, function)
        yield row(f"not.{kind}", kind, lambda a, k=kind: wrap(k, ~a), arity=1)
        yield row(f"cnot.{kind}", kind, lambda a: int(a == 0), arity=1)
    for name, function in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        yield row(f"{name}.pred", "pred", function)
    yield row("not.pred", "pred", lambda a: 1 - a, arity=1)
    for table in (0x00, 0x01, 0x1A, 0x3C, 0x80, 0x96, 0xB8, 0xC0, 0xE8, 0xEA, 0xF8, 0xFE, 0xFF):
        yield Row(f"lop3.b32 %d, %a, %b, %c, 0x{table:02x};", ("b32",) * 3, ("b32",), lop3(table), cases("b32", "b32", "b32"),
                  note=f"0x{table:02x}")
    yield Row("{ .reg .pred %u, %v; setp.ne.u32 %v, %c, 0; lop3.or.b32 %d|%u, %a, %b, %c, 0x80, %v; selp.u32 %e, 1, 0, %u; }",
              ("b32",) * 3, ("b32", "u32"), lambda a, b, c: (a & b & c, int(a & b & c != 0 or c != 0)),
              cases("b32", "b32", "b32"), note="lop3_predicate")


def lop3(table):
    """Bit i of the result is bit (a_i b_i c_i) of the table."""

    def oracle(a, b, c):
        return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))

    return oracle


def shift_rows():
    for kind in ("b16", "b32", "b64"):
        width = WIDTHS[kind]
        yield Row(f"shl.{kind} %d, %a, %b;", (kind, "u32"), (kind,),
                  lambda a, s, k=kind, w=width: wrap(k, a << min(s, w)), with_amounts(kind))
    for kind in ("b16", "b32", "b64") + KINDS:
        width = WIDTHS[kind]
        yield Row(f"shr.{kind} %d, %a, %b;", (kind, "u32"), (kind,),
                  lambda a, s, k=kind, w=width: wrap(k, value(k, a) >> min(s, w)), with_amounts(kind))
    table = tuple((a, b, s) for a, b in cases("b32", "b32", limit=12, extra=2) for s in SHIFTS)
    for mode in ("clamp", "wrap"):
        amount = (lambda s: min(s, 32)) if mode == "clamp" else (lambda s: s & 31)
        yield Row(f"shf.l.{mode}.b32 %d, %a, %b, %c;", ("b32", "b32", "u32"), ("b32",),
                  lambda a, b, s, n=amount: ((b << 32 | a) << n(s)) >> 32 & MASK32, table)
        yield Row(f"shf.r.{mode}.b32 %d, %a, %b, %c;", ("b32", "b32", "u32"), ("b32",),
                  lambda a, b, s, n=amount: (b << 32 | a) >> n(s) & MASK32, table)


def count_rows():
    for kind in ("b32", "b64"):
        width = WIDTHS[kind]
        yield row(f"popc.{kind}", kind, int.bit_count, arity=1, outs=("u32",))
        yield row(f"clz.{kind}", kind, lambda a, w=width: w - a.bit_length(), arity=1, outs=("u32",))
        yield row(f"brev.{kind}", kind, lambda a, w=width: int(f"{a:0{w}b}"[::-1], 2), arity=1)
    for kind in ("u32", "s32", "u64", "s64"):
        yield row(f"bfind.{kind}", kind, lambda a, k=kind: bfind(k, a), arity=1, outs=("u32",))
        yield row(f"bfind.shiftamt.{kind}", kind, lambda a, k=kind: bfind(k, a, True), arity=1, outs=("u32",))


def bfind(kind, bits, shift_amount=False):
    """The highest bit that is not a copy of the sign; all ones where there is none."""
    number = value(kind, bits)
    place = (number if number >= 0 else ~number).bit_length() - 1
    if place < 0:
        return MASK32
    return WIDTHS[kind] - 1 - place if shift_amount else place


def field_cases(kind, extra=()):
    rng = Random(3)
    positions = (0, 1, 8, 31, 32, 40, 63, 64, 255, 256, 0x1FF)
    lengths = (0, 1, 5, 16, 31, 32, 33, 64, 200, 255, 256)
    values = [v for (v,) in cases(kind, extra=4)]
    return tuple((rng.choice(values), p, n) for p in positions for n in lengths for _ in range(2))


def bfe(kind):
    """Position and length are bytes; beyond the field, or beyond the top bit, comes its sign (zero if unsigned)."""

    def oracle(a, position, length):
        top, position, length = WIDTHS[kind] - 1, position & 255, length & 255
        signed = kind[0] == "s" and length
        fill = a >> min(position + length - 1, top) & 1 if signed else 0
        inside = lambda i: i < length and position + i <= top
        return sum((a >> (position + i) & 1 if inside(i) else fill) << i for i in range(top + 1))

    return oracle


def bfi(kind):
    def oracle_body(a, b, position, length):
        width, position, length = WIDTHS[kind], position & 255, length & 255
        mask = ((1 << length) - 1) << position & ((1 << width) - 1)
        return b & ~mask | (a << position) & mask

    return oracle_body


def field_rows():
    for kind in ("u32", "s32", "u64", "s64"):
        yield Row(f"bfe.{kind} %d, %a, %b, %c;", (kind, "u32", "u32"), (kind,), bfe(kind), field_cases(kind))
    for kind in ("b32", "b64"):
        for position in (0, 3, 31, 33, 63, 255):
            body = bfi(kind)
            table = tuple((a, b, n) for a, b in cases(kind, kind, limit=10, extra=2) for n in (0, 1, 8, 31, 32, 40, 255, 256))
            yield Row(f"bfi.{kind} %d, %a, %b, {position}, %c;", (kind, kind, "u32"), (kind,),
                      lambda a, b, n, p=position, body=body: body(a, b, p, n), table, note=f"at_{position}")
    table = tuple((p, n) for p in (0, 1, 16, 31, 32, 33, 255) for n in (0, 1, 15, 31, 32, 33, 255))
    yield Row("bmsk.clamp.b32 %d, %a, %b;", ("u32", "u32"), ("b32",),
              lambda p, n: 0 if p >= 32 else ((1 << min(n, 32)) - 1) << p & MASK32, table)
    yield Row("bmsk.wrap.b32 %d, %a, %b;", ("u32", "u32"), ("b32",),
              lambda p, n: ((1 << (n & 31)) - 1) << (p & 31) & MASK32, table)
    for kind in ("u32", "s32"):
        yield Row(f"szext.clamp.{kind} %d, %a, %b;", (kind, "u32"), (kind,), lambda a, n, k=kind: szext(k, a, min(n, 32)),
                  with_amounts(kind))
        yield Row(f"szext.wrap.{kind} %d, %a, %b;", (kind, "u32"), (kind,), lambda a, n, k=kind: szext(k, a, n & 31),
                  with_amounts(kind))


def szext(kind, bits, length):
    field = bits & ((1 << length) - 1)
    return wrap(kind, field - (1 << length) if kind == "s32" and length and field >> (length - 1) else field)


def pick_bytes(a, b, selectors):
    source = [(b << 32 | a) >> 8 * i & 255 for i in range(8)]
    picked = [(0xFF if source[s & 7] & 0x80 else 0) if s & 8 else source[s & 7] for s in selectors]
    return sum(v << 8 * i for i, v in enumerate(picked))


PRMT = {"f4e": lambda i: [i, i + 1, i + 2, i + 3],
        "b4e": lambda i: [i, (i - 1) & 7, (i - 2) & 7, (i - 3) & 7],
        "rc8": lambda i: [i] * 4,
        "ecl": lambda i: [max(j, i) for j in range(4)],
        "ecr": lambda i: [min(j, i) for j in range(4)],
        "rc16": lambda i: [0, 1, 0, 1] if i & 1 == 0 else [2, 3, 2, 3]}


def prmt_rows():
    selectors = (0x3210, 0x7654, 0x5410, 0x7632, 0x0000, 0xFFFF, 0x8888, 0xBA98, 0x1032, 0x4321, 0xFEDC3210, 0xC480)
    table = tuple((a, b, s) for a, b in cases("b32", "b32", limit=20, extra=4) for s in selectors)
    yield Row("prmt.b32 %d, %a, %b, %c;", ("b32",) * 3, ("b32",),
              lambda a, b, s: pick_bytes(a, b, [s >> 4 * i & 15 for i in range(4)]), table)
    for mode, choose in PRMT.items():
        table = tuple((a, b, s) for a, b in cases("b32", "b32", limit=20, extra=4) for s in (0, 1, 2, 3, 4, 7))
        yield Row(f"prmt.b32.{mode} %d, %a, %b, %c;", ("b32",) * 3, ("b32",),
                  lambda a, b, s, f=choose: pick_bytes(a, b, [i & 7 for i in f(s & 3)]), table)


def compare_integers(cmp, kind, a, b):
    alias = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    return int(compare(alias.get(cmp, cmp), value(kind, a), value(kind, b)))


def comparison_rows():
    for kind in KINDS + ("b16", "b32", "b64"):
        names = ("eq", "ne") if kind[0] == "b" else ("eq", "ne", "lt", "le", "gt", "ge")
        for cmp in names + (("lo", "ls", "hi", "hs") if kind[0] == "u" else ()):
            yield row(f"setp.{cmp}.{kind}", kind, lambda a, b, c=cmp, k=kind: compare_integers(c, k, a, b), outs=("pred",))
    for logic, function in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        table = cases("s32", "s32", "pred")
        both = lambda a, b, c, f=function: (f(int(value("s32", a) < value("s32", b)), c),
                                            f(int(value("s32", a) >= value("s32", b)), c))
        yield Row(f"setp.lt.{logic}.s32 %d|%e, %a, %b, %c;", ("s32", "s32", "pred"), ("pred", "pred"), both, table)
        yield Row(f"setp.lt.{logic}.s32 %d, %a, %b, !%c;", ("s32", "s32", "pred"), ("pred",),
                  lambda a, b, c, f=function: f(int(value("s32", a) < value("s32", b)), 1 - c), table, note="negated")
        yield Row(f"set.gt.{logic}.u32.s32 %d, %a, %b, %c;", ("s32", "s32", "pred"), ("u32",),
                  lambda a, b, c, f=function: MASK32 * f(int(value("s32", a) > value("s32", b)), c), table)
    yield Row("set.le.f32.u32 %d, %a, %b;", ("u32", "u32"), ("f32",), lambda a, b: 0x3F800000 * (a <= b), cases("u32", "u32"))


def selection_rows():
    for kind in ("b16", "b32", "b64", "u32", "s64", "f32", "f64"):
        yield Row(f"selp.{kind} %d, %a, %b, %c;", (kind, kind, "pred"), (kind,), lambda a, b, c: a if c else b,
                  cases(kind, kind, "pred"), any_nan=False)
    yield Row("slct.b32.s32 %d, %a, %b, %c;", ("b32", "b32", "s32"), ("b32",), lambda a, b, c: a if value("s32", c) >= 0 else b,
              cases("b32", "b32", "s32"))
    nan_or_negative = lambda c: c & 0x7FFFFFFF > 0x7F800000 or (c >> 31 and c != 1 << 31)
    yield Row("slct.u64.f32 %d, %a, %b, %c;", ("u64", "u64", "f32"), ("u64",), lambda a, b, c: b if nan_or_negative(c) else a,
              cases("u64", "u64", "f32"))


def move_rows():
    for kind in ("b16", "b32", "b64", "u32", "s64", "f32", "f64"):
        yield row(f"mov.{kind}", kind, lambda a: a, arity=1, any_nan=False)
    yield row("mov.pred", "pred", lambda a: a, arity=1)
    yield Row("mov.b64 {%i, %n}, %a; mov.b64 %d, {%n, %i};", ("b64",), ("b64",), lambda a: a >> 32 | (a & MASK32) << 32,
              cases("b64"))
    yield Row("{ .reg .b16 %h<2>; mov.b32 {%h0, %h1}, %a; mov.b32 %d, {%h1, %h0}; }", ("b32",), ("b32",),
              lambda a: a >> 16 | a << 16 & MASK32, cases("b32"), note="halves")
    yield Row("{ .reg .b16 %h<4>; mov.b64 {%h0, %h1, %h2, %h3}, %a; mov.b64 %d, {%h3, %h2, %h1, %h0}; }", ("b64",), ("b64",),
              lambda a: sum((a >> 16 * i & 0xFFFF) << 16 * (3 - i) for i in range(4)), cases("b64"), note="quarters")
    yield Row("{ .reg .b16 %h; mov.b32 {_, %h}, %a; cvt.u32.u16 %d, %h; }", ("b32",), ("b32",), lambda a: a >> 16,
              cases("b32"), note="sink")


ROWS = [*logic_rows(), *shift_rows(), *count_rows(), *field_rows(), *prmt_rows(), *comparison_rows(), *selection_rows(),
        *move_rows()]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_bits(row):
    check_row(row)


def test_prmt_example_of_the_manual():
    assert pick_bytes(0x03020100, 0x07060504, [4, 3, 2, 1]) == 0x01020304 and bytes_of("u32", 0x80FF) == [255, 128, 0, 0]
