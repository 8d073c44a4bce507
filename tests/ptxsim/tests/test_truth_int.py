"""Integer arithmetic: PTX ISA 9.7.1 and 9.7.2 (extended precision)."""

import pytest
from truth import WIDTHS, Row, cases, check_row

KINDS = ("u16", "s16", "u32", "s32", "u64", "s64")
MASK32 = 0xFFFFFFFF


def value(kind, bits):
    width = WIDTHS[kind]
    bits &= (1 << width) - 1
    return bits - (1 << width) if kind[0] == "s" and bits >> (width - 1) else bits


def wrap(kind, number):
    return number & ((1 << WIDTHS[kind]) - 1)


def clamp(kind, number):
    width = WIDTHS[kind]
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if kind[0] == "s" else (0, (1 << width) - 1)
    return wrap(kind, max(low, min(high, number)))


def over(kind, function, result=None):
    """The function on signed or unsigned numbers, wrapped into the result's width."""
    return lambda *bits: wrap(result or kind, function(*(value(kind, b) for b in bits)))


def truncated_quotient(a, b):
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def row(opcode, kind, oracle, arity=2, outs=None, table=None, **options):
    operands = ", ".join(("%a", "%b", "%c")[:arity])
    return Row(f"{opcode} %d, {operands};", (kind,) * arity, outs or (kind,), oracle,
               table or cases(*[kind] * arity), **options)


def sum_rows():
    for kind in KINDS:
        yield row(f"add.{kind}", kind, over(kind, lambda a, b: a + b))
        yield row(f"sub.{kind}", kind, over(kind, lambda a, b: a - b))
        yield row(f"min.{kind}", kind, over(kind, min))
        yield row(f"max.{kind}", kind, over(kind, max))
        yield row(f"sad.{kind}", kind, over(kind, lambda a, b, c: abs(a - b) + c), arity=3)
    yield row("add.sat.s32", "s32", lambda a, b: clamp("s32", value("s32", a) + value("s32", b)))
    yield row("sub.sat.s32", "s32", lambda a, b: clamp("s32", value("s32", a) - value("s32", b)))
    for kind in ("s16", "s32", "s64"):
        yield row(f"neg.{kind}", kind, over(kind, lambda a: -a), arity=1)
        yield row(f"abs.{kind}", kind, over(kind, abs), arity=1)


def product_rows():
    for kind in KINDS:
        width = WIDTHS[kind]
        yield row(f"mul.lo.{kind}", kind, over(kind, lambda a, b: a * b))
        yield row(f"mul.hi.{kind}", kind, over(kind, lambda a, b, w=width: a * b >> w))
        yield row(f"mad.lo.{kind}", kind, over(kind, lambda a, b, c: a * b + c), arity=3)
        yield row(f"mad.hi.{kind}", kind, over(kind, lambda a, b, c, w=width: (a * b >> w) + c), arity=3)
    for kind, wide in (("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")):
        yield row(f"mul.wide.{kind}", kind, over(kind, lambda a, b: a * b, wide), outs=(wide,))
        yield Row(f"mad.wide.{kind} %d, %a, %b, %c;", (kind, kind, wide), (wide,), mad_wide(kind, wide),
                  cases(kind, kind, wide))
    yield row("mad.hi.sat.s32", "s32", lambda a, b, c: clamp("s32", (value("s32", a) * value("s32", b) >> 32) + value("s32", c)),
              arity=3)


def mad_wide(kind, wide):
    return lambda a, b, c: wrap(wide, value(kind, a) * value(kind, b) + c)


def low24(kind, bits):
    bits &= 0xFFFFFF
    return bits - (1 << 24) if kind == "s32" and bits >> 23 else bits


def mul24_rows():
    for kind in ("u32", "s32"):
        for half, shift in (("lo", 0), ("hi", 16)):
            product = lambda a, b, k=kind, s=shift: low24(k, a) * low24(k, b) >> s
            yield row(f"mul24.{half}.{kind}", kind, lambda a, b, p=product: p(a, b) & MASK32)
            yield row(f"mad24.{half}.{kind}", kind, lambda a, b, c, p=product: (p(a, b) + c) & MASK32, arity=3)


def quotient_rows():
    """Division by zero is machine-specific, so it has its own test; MIN / -1 wraps."""
    for kind in KINDS:
        table = tuple(c for c in cases(kind, kind) if c[1])
        yield row(f"div.{kind}", kind, over(kind, truncated_quotient), table=table)
        yield row(f"rem.{kind}", kind, over(kind, lambda a, b: a - b * truncated_quotient(a, b)), table=table)


def bytes_of(kind, bits, width=8):
    step = [bits >> i & ((1 << width) - 1) for i in range(0, 32, width)]
    return [v - (1 << width) if kind[0] == "s" and v >> (width - 1) else v for v in step]


def dot_rows():
    for ka in ("u32", "s32"):
        for kb in ("u32", "s32"):
            four = lambda a, b, c, ka=ka, kb=kb: (sum(x * y for x, y in zip(bytes_of(ka, a), bytes_of(kb, b))) + c) & MASK32
            yield row(f"dp4a.{ka}.{kb}", "b32", four, arity=3)
            for half in ("lo", "hi"):
                yield row(f"dp2a.{half}.{ka}.{kb}", "b32", dp2a(ka, kb, half), arity=3)


def dp2a(ka, kb, half):
    """Two halves of a against the low or high two bytes of b."""

    def oracle(a, b, c):
        chosen = bytes_of(kb, b)[:2] if half == "lo" else bytes_of(kb, b)[2:]
        return (sum(x * y for x, y in zip(bytes_of(ka, a, 16), chosen)) + c) & MASK32

    return oracle


def carry_rows():
    """Two-word sums and products through the carry flag."""
    join = lambda low, high: low & MASK32 | (high & MASK32) << 32
    split = lambda n: (n & MASK32, n >> 32 & MASK32)
    table = cases("u32", "u32", "u32")
    yield Row("add.cc.u32 %d, %a, %b; addc.u32 %e, %c, %a;", ("u32",) * 3, ("u32", "u32"),
              lambda a, b, c: split(join(a, c) + join(b, a)), table)
    yield Row("sub.cc.u32 %d, %a, %b; subc.u32 %e, %c, %a;", ("u32",) * 3, ("u32", "u32"),
              lambda a, b, c: split(join(a, c) - join(b, a)), table)
    yield Row("mad.lo.cc.u32 %d, %a, %b, %c; madc.hi.u32 %e, %a, %b, %c;", ("u32",) * 3, ("u32", "u32"),
              lambda a, b, c: split(a * b + join(c, c)), table)
    yield Row("add.cc.u32 %d, %a, %b; addc.cc.u32 %d, %b, %c; addc.u32 %e, 0, 0;", ("u32",) * 3, ("u32", "u32"),
              lambda a, b, c: split(b + c + (a + b >> 32)), table)
    yield Row("add.cc.u64 %d, %a, %b; addc.u64 %e, 0, 0;", ("u64",) * 2, ("u64", "u64"),
              lambda a, b: ((a + b) & (1 << 64) - 1, a + b >> 64), cases("u64", "u64"))


ROWS = [*sum_rows(), *product_rows(), *mul24_rows(), *quotient_rows(), *dot_rows(), *carry_rows()]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_integer(row):
    check_row(row)


@pytest.mark.parametrize("opcode", [f"{op}.{kind}" for op in ("div", "rem") for kind in KINDS])
def test_division_by_zero_leaves_the_process_alive(opcode):
    kind = opcode.split(".")[1]
    table = tuple((a, 0) for (a, _) in cases(kind, kind, limit=16, extra=0))
    check_row(row(opcode, kind, lambda a, b: 0, table=table, tolerance=lambda *_: None))
