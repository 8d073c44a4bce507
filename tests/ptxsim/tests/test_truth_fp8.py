"""Pairs of 8-bit floats: PTX ISA 9.7.9.21 (cvt with .e4m3x2 and .e5m2x2), every value of both formats."""

from fractions import Fraction
from math import isnan

import ptxsim
import pytest
from exact_floats import FORMATS, decode, encode, negative, relu
from test_truth_cvt import halfway_cases
from truth import Row, check_row, either_zero, module_text

PAIRS = ("e4m3x2", "e5m2x2")
LARGEST = {"e4m3x2": 448, "e5m2x2": 57344}


def both(one, width):
    """The same function on both halves of a register."""
    return lambda pair: one(pair & (1 << width) - 1) | one(pair >> width) << (8 if width == 16 else 16)


def narrowed(pair, source, rectify):
    """To nearest even; beyond the largest number, that number; NaN is canonical."""
    fmt, wide = FORMATS[pair[:-2]], FORMATS[source]

    def one(bits):
        x = decode(wide, bits)
        if isinstance(x, float) and isnan(x):
            return fmt.canonical_nan
        result = encode(fmt, x)
        if result & ~fmt.sign_bit >= fmt.inf_bits:
            result = fmt.largest_bits | (fmt.sign_bit if negative(x) else 0)
        return relu(fmt, result) if rectify else result

    return one


def widened(pair, rectify):
    fmt, half = FORMATS[pair[:-2]], FORMATS["f16"]

    def one(bits):
        result = encode(half, decode(fmt, bits))
        return relu(half, result) if rectify else result

    return one


def near_the_top(pair, source):
    """Around the largest number, and around the tie between it and the next that there would be."""
    largest, unit = LARGEST[pair], Fraction(LARGEST[pair], 14 if pair == "e4m3x2" else 7)
    for number in (largest, largest + unit / 2, largest + unit, 2 * largest, largest - unit / 2):
        bits = encode(FORMATS[source], Fraction(number))
        yield from (bits - 1, bits, bits + 1, bits | FORMATS[source].sign_bit)


def inputs(pair, source):
    single = sorted({bits for (bits,) in halfway_cases(pair[:-2], source)} | set(near_the_top(pair, source)))
    return tuple(bits & (1 << FORMATS[source].width) - 1 for bits in single)


def rows():
    for pair in PAIRS:
        for rectify in ("", ".relu"):
            tolerance = either_zero if rectify else None
            one, single = narrowed(pair, "f32", bool(rectify)), inputs(pair, "f32")
            yield Row(f"cvt.rn.satfinite{rectify}.{pair}.f32 %d, %a, %b;", ("f32", "f32"), (pair,),
                      lambda a, b, one=one: one(a) << 8 | one(b), tuple(zip(single, single[7:] + single[:7])), "sm_89", tolerance)
            halves = inputs(pair, "f16")
            yield Row(f"cvt.rn.satfinite{rectify}.{pair}.f16x2 %d, %a;", ("f16x2",), (pair,),
                      both(narrowed(pair, "f16", bool(rectify)), 16),
                      tuple((a | b << 16,) for a, b in zip(halves, halves[5:] + halves[:5])), "sm_89", tolerance)
            yield Row(f"cvt.rn{rectify}.f16x2.{pair} %d, %a;", (pair,), ("f16x2",), both(widened(pair, bool(rectify)), 8),
                      tuple((low | (low * 7 + 3) % 256 << 8,) for low in range(256)), "sm_89", tolerance)
    yield from by_hand()


def by_hand():
    """Ones, the smallest and largest numbers, ties and NaN, written out; the second input is 1."""
    answers = {
        "e4m3x2": {0x3F800000: 0x38, 0xBF800000: 0xB8, 0x43E00000: 0x7E, 0x43E80000: 0x7E, 0x7F800000: 0x7E, 0xFF800000: 0xFE,
                   0x7FC00000: 0x7F, 0x3B000000: 0x01, 0x3A800000: 0x00, 0x3A800001: 0x01, 0x3F880000: 0x38, 0x3F980000: 0x3A,
                   0x80000000: 0x80},
        "e5m2x2": {0x3F800000: 0x3C, 0x47600000: 0x7B, 0x47700000: 0x7B, 0x7F800000: 0x7B, 0xFF800000: 0xFB, 0x37800000: 0x01,
                   0x37000000: 0x00, 0x37000001: 0x01, 0x3F900000: 0x3C, 0x3FB00000: 0x3E},
    }
    for pair, table in answers.items():
        one = table[0x3F800000]
        yield Row(f"cvt.rn.satfinite.{pair}.f32 %d, %a, %b;", ("f32", "f32"), (pair,),
                  lambda a, b, table=table, one=one: table[a] << 8 | one, tuple((a, 0x3F800000) for a in table), "sm_89",
                  any_nan=False, note="by_hand")


ROWS = list(rows())


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_conversion(row):
    check_row(row)


WRONG = """.visible .entry k() {{
  .reg .b16 %h; .reg .b32 %r; .reg .f32 %f;
  mov.f32 %f, 0f3F800000; mov.b32 %r, 0; mov.b16 %h, 0;
  {instruction}
  ret;
}}
"""


@pytest.mark.parametrize("target, instruction, why", [
    ("sm_80", "cvt.rn.satfinite.e4m3x2.f32 %h, %f, %f;", "it needs .target sm_89, the module's is sm_80"),
    ("sm_89", "cvt.rn.e4m3x2.f32 %h, %f, %f;", "8-bit floats are made by .rn.satfinite"),
    ("sm_89", "cvt.rz.satfinite.e5m2x2.f32 %h, %f, %f;", "8-bit floats are made by .rn.satfinite"),
    ("sm_89", "cvt.rn.bf16x2.e4m3x2 %r, %h;", "a pair of .e4m3x2 to a pair of .bf16x2")])
def test_what_ptxas_refuses_is_unsupported(target, instruction, why):
    kernel = ptxsim.load_ptx(module_text(target, [WRONG.format(instruction=instruction)])).kernel("k")
    kernel.program.registers = 16
    with pytest.raises(ptxsim.Unsupported, match=why) as caught:
        ptxsim.Device(profile="sm_89").launch(kernel, 1, 32, [])
    assert instruction in str(caught.value)
