"""Half-precision arithmetic, packed and not: PTX ISA 9.7.4 and the half forms of 9.7.7 (set, setp)."""

from fractions import Fraction
from math import tanh

import pytest
from exact_floats import FORMATS, decode, encode
from float_oracles import EXACT, arithmetic, compare, extremum, flush, packed, setp_float, sign_change
from truth import Row, cases, check_row, either_zero, isinf_value, isnan_value, within

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
ARITY = {"add": 2, "sub": 2, "mul": 2, "fma": 3}
OPERANDS = {2: "%d, %a, %b", 3: "%d, %a, %b, %c"}


def scalar_opcode(opcode):
    return opcode.removesuffix("x2")


def widen(opcode, oracle):
    return packed(oracle) if opcode.endswith("x2") else oracle


def arithmetic_rows():
    for name, arity in ARITY.items():
        for mods in ("rn", "rn.ftz", "rn.sat", "rn.ftz.sat") + (("rn.relu", "rn.ftz.relu") if name == "fma" else ()):
            for kind in ("f16", "f16x2"):
                yield arithmetic_row(f"{name}.{mods}.{kind}", arity, "sm_80")
        for kind in ("bf16", "bf16x2"):
            yield arithmetic_row(f"{name}.rn.{kind}", arity, "sm_80" if name == "fma" else "sm_90")
    for kind in ("bf16", "bf16x2"):
        yield arithmetic_row(f"fma.rn.relu.{kind}", 3, "sm_80")
    yield from (arithmetic_row(f"{op}.f16", 2, "sm_80") for op in ("add", "sub", "mul"))


def arithmetic_row(opcode, arity, target):
    name, kind = opcode.split(".")[0], opcode.split(".")[-1]
    oracle = widen(opcode, arithmetic(scalar_opcode(opcode), EXACT[name]))
    tolerance = either_zero if "relu" in opcode else None
    return Row(f"{opcode} {OPERANDS[arity]};", (kind,) * arity, (kind,), oracle, cases(*[kind] * arity), target, tolerance)


def extremum_rows():
    for name in ("min", "max"):
        for kind in ("f16", "f16x2", "bf16", "bf16x2"):
            for mods in ("", "NaN.", "xorsign.abs.", "NaN.xorsign.abs.") + (("ftz.", "ftz.NaN.") if kind[0] == "f" else ()):
                opcode = f"{name}.{mods}{kind}"
                oracle = widen(opcode, extremum(scalar_opcode(opcode)))
                target = "sm_86" if "xorsign" in mods else "sm_80"
                yield Row(f"{opcode} %d, %a, %b;", (kind, kind), (kind,), oracle, cases(kind, kind), target)


def sign_rows():
    for name in ("neg", "abs"):
        for kind in ("f16", "f16x2", "bf16", "bf16x2", "ftz.f16", "ftz.f16x2"):
            opcode, register = f"{name}.{kind}", kind.split(".")[-1]
            oracle = widen(opcode, sign_change(scalar_opcode(opcode)))
            yield Row(f"{opcode} %d, %a;", (register,), (register,), oracle, cases(register))


def setp_rows():
    for kind, target in (("f16", "sm_80"), ("bf16", "sm_90")):
        for cmp in COMPARISONS:
            opcode = f"setp.{cmp}.{kind}"
            yield Row(f"{opcode} %d, %a, %b;", (kind, kind), ("pred",), setp_float(opcode), cases(kind, kind), target)
            yield pair_row(cmp, kind, target)
    opcode = "setp.gt.ftz.f16"
    yield Row(f"{opcode} %d, %a, %b;", ("f16", "f16"), ("pred",), setp_float(opcode), cases("f16", "f16"))


def pair_row(cmp, kind, target):
    """setp on packed halves: the first predicate is the low half's, the second the high half's."""
    test = setp_float(f"setp.{cmp}.{kind}")
    oracle = lambda a, b: (test(a & 0xFFFF, b & 0xFFFF), test(a >> 16, b >> 16))
    both = kind + "x2"
    return Row(f"setp.{cmp}.{both} %d|%e, %a, %b;", (both, both), ("pred", "pred"), oracle, cases(both, both), target)


TRUE_VALUES = {"u16": 0xFFFF, "s16": 0xFFFF, "u32": 0xFFFFFFFF, "s32": 0xFFFFFFFF, "f16": 0x3C00, "bf16": 0x3F80,
               "f32": 0x3F800000}


def set_rows():
    for cmp in COMPARISONS:
        for result, source, target in (("u16", "f16", "sm_80"), ("u32", "f16", "sm_80"), ("f16", "f16", "sm_80"),
                                       ("f16", "f32", "sm_80"), ("f32", "f32", "sm_80"), ("u32", "f32", "sm_80"),
                                       ("bf16", "bf16", "sm_90"), ("u16", "bf16", "sm_90"), ("u32", "f64", "sm_80")):
            test, yes = setp_float(f"setp.{cmp}.{source}"), TRUE_VALUES[result]
            oracle = lambda a, b, test=test, yes=yes: yes if test(a, b) else 0
            yield Row(f"set.{cmp}.{result}.{source} %d, %a, %b;", (source, source), (result,), oracle,
                      cases(source, source, limit=96), target)
        for result, source, target in (("f16x2", "f16x2", "sm_80"), ("u32", "f16x2", "sm_80"), ("bf16x2", "bf16x2", "sm_90"),
                                       ("u32", "bf16x2", "sm_90")):
            half = source[:-2]
            test, yes = setp_float(f"setp.{cmp}.{half}"), TRUE_VALUES["u16" if result == "u32" else half]
            oracle = packed(lambda a, b, test=test, yes=yes: yes if test(a, b) else 0)
            yield Row(f"set.{cmp}.{result}.{source} %d, %a, %b;", (source, source), (result,), oracle,
                      cases(source, source, limit=96), target)


def approximate(kind, function, ftz):
    """function on doubles, rounded once; bounds of the manual are relative errors."""
    fmt = FORMATS[kind]

    def oracle(a):
        x = decode(fmt, flush(fmt, a) if ftz else a)
        if isnan_value(x):
            return fmt.canonical_nan
        try:
            y = function(float(x))
        except OverflowError:
            y = float("inf")
        value = Fraction(y) if y and y != float("inf") else y
        bits = encode(fmt, value)
        return flush(fmt, bits) if ftz else bits

    return oracle


def approximate_rows():
    """ex2.approx.f16: 2^-9.9; ex2.approx.ftz.bf16: 2^-7; tanh.approx.f16: absolute 2^-10.987; bf16: 2^-8."""
    for opcode, function, target, bound in (
            ("ex2.approx.f16", lambda x: 2.0**x, "sm_80", within(relative=2.0**-9.9, absolute=2.0**-24)),
            ("ex2.approx.ftz.bf16", lambda x: 2.0**x, "sm_90", within(relative=2.0**-7)),
            ("tanh.approx.f16", tanh, "sm_80", within(absolute=2.0**-10.987)),
            ("tanh.approx.bf16", tanh, "sm_90", within(relative=2.0**-8, absolute=2.0**-130))):
        kind = opcode.split(".")[-1]
        oracle = approximate(kind, function, "ftz" in opcode)
        yield Row(f"{opcode} %d, %a;", (kind,), (kind,), oracle, cases(kind), target, bound)
        both = kind + "x2"
        yield Row(f"{opcode}x2 %d, %a;", (both,), (both,), packed(oracle), cases(both), target, halves_within(bound))


def halves_within(bound):
    def check(kind, expected, got, case):
        for shift in (0, 16):
            why = bound(kind[:-2], expected >> shift & 0xFFFF, got >> shift & 0xFFFF, case)
            if why:
                return f"{'high' if shift else 'low'} half: {why}"
        return None

    return check


ROWS = [*arithmetic_rows(), *extremum_rows(), *sign_rows(), *setp_rows(), *set_rows(), *approximate_rows()]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_half(row):
    check_row(row)


def test_the_comparisons_are_those_of_the_manual():
    one, nan = decode(FORMATS["f16"], 0x3C00), decode(FORMATS["f16"], 0x7E00)
    assert compare("neu", one, nan) and not compare("ne", one, nan) and compare("nan", nan, one)
    assert not isinf_value(one)
