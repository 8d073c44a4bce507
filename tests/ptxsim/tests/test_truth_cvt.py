"""Conversions: PTX ISA 9.7.9.21 (cvt), every pair of types that ptxas takes."""

from fractions import Fraction
from math import isinf, isnan
from random import Random

import pytest
from exact_floats import FORMATS, TF32, decode, edge_bits, encode, flush, is_zero, negative, relu, round_to_integer, saturate
from test_truth_int import clamp, value
from truth import WIDTHS, Row, cases, check_row, either_zero, register_bits

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
FLOATS = ("f16", "f32", "f64")
INTEGER_MODES = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def target_of(*kinds):
    return "sm_90" if "bf16" in kinds else "sm_80"


def extended(kind, bits):
    """An 8-bit result arrives in a 32-bit register, extended by its own sign."""
    return value(kind, bits) & ((1 << register_bits(kind)) - 1)


# ---- integers to integers ----------------------------------------------------------------------


def integer_rows():
    for result in INTEGERS:
        for source in INTEGERS:
            yield Row(f"cvt.{result}.{source} %d, %a;", (source,), (result,),
                      lambda a, r=result, s=source: extended(r, value(s, a)), cases(source, extra=8))
            if not holds_all(result, source):
                yield Row(f"cvt.sat.{result}.{source} %d, %a;", (source,), (result,),
                          lambda a, r=result, s=source: extended(r, clamp(r, value(s, a))), cases(source, extra=8))


def holds_all(result, source):
    """Saturation is impossible where every source value fits."""
    if result[0] == source[0]:
        return WIDTHS[result] >= WIDTHS[source]
    return source[0] == "u" and WIDTHS[result] > WIDTHS[source]


# ---- floats to integers ------------------------------------------------------------------------


def near_integers(source):
    """Halves, integers and their neighbours around the limits of every integer type."""
    fmt, table = FORMATS[source], set(edge_bits(FORMATS[source]))
    for k in (0, 1, 2, 3, 5, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64):
        for offset in (Fraction(-1, 2), Fraction(-1, 4), 0, Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)):
            number = Fraction(k + offset)
            bits = encode(fmt, number if number else 0.0)
            table |= {bits, bits | fmt.sign_bit}
    return tuple((b,) for b in sorted(table))


def to_integer(result, source, mode, ftz=False):
    fmt = FORMATS[source]

    def oracle(a):
        x = decode(fmt, flush(fmt, a) if ftz else a)
        if isinstance(x, float) and isnan(x):
            wide = source == "f64" or WIDTHS[result] == 64
            return 1 << (WIDTHS[result] - 1) if wide else 0
        if isinstance(x, float):
            huge = 1 << 70 if isinf(x) else 0
            return extended(result, clamp(result, -huge if negative(x) else huge))
        sign = -1 if x < 0 else 1
        return extended(result, clamp(result, sign * round_to_integer(abs(x), INTEGER_MODES[mode], sign)))

    return oracle


def float_to_integer_rows():
    for source in (*FLOATS, "bf16"):
        for result in (k for k in INTEGERS if source != "bf16" or WIDTHS[k] > 8):
            for mode in INTEGER_MODES:
                narrow_f64 = source == "f64" and WIDTHS[result] < 32    # what NaN gives there is not written down plainly
                table = near_integers(source)
                if narrow_f64:
                    table = tuple(c for c in table if not isnan(float(decode(FORMATS[source], c[0]))))
                yield Row(f"cvt.{mode}.{result}.{source} %d, %a;", (source,), (result,), to_integer(result, source, mode),
                          table, target_of(source))
    for mode in INTEGER_MODES:
        yield Row(f"cvt.{mode}.ftz.s32.f32 %d, %a;", ("f32",), ("s32",), to_integer("s32", "f32", mode, ftz=True),
                  near_integers("f32"))
        yield Row(f"cvt.{mode}.sat.u32.f32 %d, %a;", ("f32",), ("u32",), to_integer("u32", "f32", mode), near_integers("f32"))


# ---- integers to floats ------------------------------------------------------------------------


def from_integer(result, source, mode, sat):
    fmt = FORMATS[result]

    def oracle(a):
        number = value(source, a)
        bits = encode(fmt, Fraction(number) if number else 0.0, mode)
        return saturate(fmt, bits) if sat else bits

    return oracle


def integer_to_float_rows():
    for result in (*FLOATS, "bf16"):
        for source in (k for k in INTEGERS if result != "bf16" or WIDTHS[k] > 8):
            for mode in ("rn", "rz", "rm", "rp"):
                for sat in ("", ".sat") if result != "bf16" and mode == "rn" else ("",):
                    yield Row(f"cvt.{mode}{sat}.{result}.{source} %d, %a;", (source,), (result,),
                              from_integer(result, source, mode, bool(sat)), cases(source), target_of(result))


# ---- floats to floats --------------------------------------------------------------------------


def halfway_cases(result, source):
    """Values of the source on, and next to, the midpoints of the result's grid."""
    rng, narrow, wide = Random(11), FORMATS[result], FORMATS[source]
    table = {(b,) for b in edge_bits(wide)}
    for bits in edge_bits(narrow) + [rng.getrandbits(narrow.width) for _ in range(40)]:
        x = decode(narrow, bits)
        if isinstance(x, Fraction):
            y = decode(narrow, bits + 1 & (1 << narrow.width) - 1)
            middle = (x + y) / 2 if isinstance(y, Fraction) else x * 2
            for number in (x, middle, x + (middle - x) / 2):
                at = encode(wide, number)
                table |= {(at,), (max(at - 1, 0),), (at + 1,)}
    return tuple(sorted(table))


def to_float(result, source, mode, mods=()):
    narrow, wide = FORMATS[result], FORMATS[source]

    def oracle(a):
        a = flush(wide, a) if "ftz" in mods and source == "f32" else a
        bits = encode(narrow, decode(wide, a), mode)
        bits = flush(narrow, bits) if "ftz" in mods and result == "f32" else bits
        bits = saturate(narrow, bits) if "sat" in mods else bits
        bits = relu(narrow, bits) if "relu" in mods else bits
        return satfinite(narrow, bits) if "satfinite" in mods else bits

    return oracle


def satfinite(fmt, bits):
    """Infinity becomes the largest finite number of its sign; NaN stays."""
    x = decode(fmt, bits)
    return bits - 1 if isinstance(x, float) and isinf(x) else bits


def narrowing_rows():
    for result, source in (("f32", "f64"), ("f16", "f64"), ("f16", "f32"), ("bf16", "f32"), ("bf16", "f64")):
        for mode in ("rn", "rz", "rm", "rp"):
            if (result, source) == ("bf16", "f32") and mode in ("rm", "rp"):
                target = "sm_90"
            else:
                target = "sm_80" if (result, source) == ("bf16", "f32") else target_of(result)
            yield Row(f"cvt.{mode}.{result}.{source} %d, %a;", (source,), (result,), to_float(result, source, mode),
                      halfway_cases(result, source), target)
    for mods in ("rn.sat", "rn.ftz", "rz.ftz.sat"):
        yield Row(f"cvt.{mods}.f32.f64 %d, %a;", ("f64",), ("f32",), to_float("f32", "f64", mods[:2], mods.split(".")),
                  tuple(c for c in halfway_cases("f32", "f64") if not tiny(c[0])))
    yield Row("cvt.rn.sat.f16.f32 %d, %a;", ("f32",), ("f16",), to_float("f16", "f32", "rn", ("sat",)), halfway_cases("f16", "f32"))
    for result in ("f16", "bf16"):
        for mods in ("rn.relu", "rz.relu", "rn.satfinite", "rn.relu.satfinite"):
            yield Row(f"cvt.{mods}.{result}.f32 %d, %a;", ("f32",), (result,),
                      to_float(result, "f32", mods[:2], mods.split(".")), halfway_cases(result, "f32"), tolerance=zeros(mods))


def tiny(bits):
    """Just below the smallest normal f32: whether .ftz sees it before or after rounding is not written down."""
    x = decode(FORMATS["f64"], bits)
    return isinstance(x, Fraction) and Fraction(2) ** -126 * (1 - Fraction(2) ** -24) <= abs(x) < Fraction(2) ** -126


def packed_rows():
    """cvt.f16x2.f32 d, a, b: a goes to the upper half."""
    for half in ("f16", "bf16"):
        single = halfway_cases(half, "f32")
        table = tuple((a, b) for (a,), (b,) in zip(single, single[7:] + single[:7]))
        for mods in ("rn", "rz", "rn.relu", "rz.relu", "rn.satfinite"):
            one = to_float(half, "f32", mods[:2], mods.split("."))
            yield Row(f"cvt.{mods}.{half}x2.f32 %d, %a, %b;", ("f32", "f32"), (half + "x2",),
                      lambda a, b, one=one: one(a) << 16 | one(b), table, tolerance=zeros(mods))


def zeros(mods):
    return either_zero if "relu" in mods else None


def widening_rows():
    for result, source, target in (("f32", "f16", "sm_80"), ("f64", "f16", "sm_80"), ("f64", "f32", "sm_80"),
                                   ("f32", "bf16", "sm_90"), ("f64", "bf16", "sm_90"), ("f32", "f32", "sm_80"),
                                   ("f64", "f64", "sm_80"), ("f16", "f16", "sm_80")):
        yield Row(f"cvt.{result}.{source} %d, %a;", (source,), (result,), to_float(result, source, "rn"), cases(source), target)
    for mods in ("ftz", "sat", "ftz.sat"):
        yield Row(f"cvt.{mods}.f32.f32 %d, %a;", ("f32",), ("f32",), to_float("f32", "f32", "rn", mods.split(".")), cases("f32"))
    yield Row("cvt.ftz.f64.f32 %d, %a;", ("f32",), ("f64",), to_float("f64", "f32", "rn", ("ftz",)), cases("f32"))
    yield Row("cvt.sat.f32.f16 %d, %a;", ("f16",), ("f32",), to_float("f32", "f16", "rn", ("sat",)), cases("f16"))
    for mode in ("rn", "rz"):
        yield Row(f"cvt.{mode}.bf16.f16 %d, %a;", ("f16",), ("bf16",), to_float("bf16", "f16", mode), cases("f16"), "sm_90")
        yield Row(f"cvt.{mode}.f16.bf16 %d, %a;", ("bf16",), ("f16",), to_float("f16", "bf16", mode), cases("bf16"), "sm_90")


def to_integral(kind, mode, mods=()):
    """cvt.rni.f32.f32: to the nearest integer, kept as a float; zero keeps the sign."""
    fmt = FORMATS[kind]

    def oracle(a):
        a = flush(fmt, a) if "ftz" in mods else a
        x = decode(fmt, a)
        if not isinstance(x, Fraction):
            return saturate(fmt, encode(fmt, x)) if "sat" in mods else encode(fmt, x)
        sign = -1 if x < 0 else 1
        whole = round_to_integer(abs(x), INTEGER_MODES[mode], sign)
        bits = encode(fmt, Fraction(sign * whole) if whole else sign * 0.0)
        return saturate(fmt, bits) if "sat" in mods else bits

    return oracle


def integral_rows():
    for kind in FLOATS:
        for mode in INTEGER_MODES:
            yield Row(f"cvt.{mode}.{kind}.{kind} %d, %a;", (kind,), (kind,), to_integral(kind, mode), near_integers(kind))
    for mode in INTEGER_MODES:
        for mods in ("ftz", "ftz.sat", "sat"):
            yield Row(f"cvt.{mode}.{mods}.f32.f32 %d, %a;", ("f32",), ("f32",), to_integral("f32", mode, mods.split(".")),
                      near_integers("f32"))


def tf32_oracle(a):
    bits = encode(TF32, decode(FORMATS["f32"], a), "rna")
    return bits << 13


def upper_19_bits(kind, expected, got, case):
    """The 13 low bits of a tf32 register mean nothing."""
    same = expected >> 13 == got >> 13 or (isnan(float(decode(TF32, expected >> 13))) and isnan(float(decode(TF32, got >> 13))))
    return None if same else f"expected 0x{expected:08x}, got 0x{got:08x} (upper 19 bits)"


def tf32_rows():
    rng = Random(5)
    table = cases("f32") + tuple((rng.getrandbits(18) << 13 | low,) for low in (0, 0xFFF, 0x1000, 0x1001, 0x1FFF) for _ in range(12))
    yield Row("cvt.rna.tf32.f32 %d, %a;", ("f32",), ("b32",), tf32_oracle, table, tolerance=upper_19_bits)


def special_rows():
    """By hand: NaN to integers, the largest values, ties."""
    by_hand = [
        ("cvt.rzi.s32.f32", "f32", "s32", {0x7FC00000: 0, 0x7F800000: 0x7FFFFFFF, 0xFF800000: 0x80000000, 0x4F000000: 0x7FFFFFFF}),
        ("cvt.rzi.u32.f32", "f32", "u32", {0xBF800000: 0, 0x4F800000: 0xFFFFFFFF, 0x4F7FFFFF: 0xFFFFFF00}),
        ("cvt.rzi.s64.f32", "f32", "s64", {0x7FC00000: 1 << 63}),
        ("cvt.rni.s32.f64", "f64", "s32", {0x7FF8000000000000: 1 << 31, 0x3FE0000000000000: 0, 0x3FF8000000000000: 2}),
        ("cvt.rni.s32.f32", "f32", "s32", {0x3F000000: 0, 0x3FC00000: 2, 0x40200000: 2, 0xBF000000: 0}),
        ("cvt.rn.f16.f32", "f32", "f16", {0x477FF000: 0x7C00, 0x477FEFFF: 0x7BFF, 0x33000000: 0, 0x33000001: 1}),
        ("cvt.rn.bf16.f32", "f32", "bf16", {0x3F808000: 0x3F80, 0x3F818000: 0x3F82, 0x7F7FFFFF: 0x7F80}),
        ("cvt.rn.f32.u64", "u64", "f32", {0xFFFFFFFFFFFFFFFF: 0x5F800000, 0x1000001: 0x4B800000}),
    ]
    for opcode, source, result, answers in by_hand:
        yield Row(f"{opcode} %d, %a;", (source,), (result,), answers.__getitem__, tuple((a,) for a in answers),
                  any_nan=False, note="by_hand")


ROWS = [*integer_rows(), *float_to_integer_rows(), *integer_to_float_rows(), *narrowing_rows(), *packed_rows(),
        *widening_rows(), *integral_rows(), *tf32_rows(), *special_rows()]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_conversion(row):
    check_row(row)


def test_zero_is_not_a_fraction():
    assert is_zero(decode(FORMATS["f32"], 0)) and is_zero(decode(FORMATS["f32"], 1 << 31))
