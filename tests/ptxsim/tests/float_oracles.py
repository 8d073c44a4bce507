"""What the PTX ISA says of floating-point arithmetic, as functions from bits to bits."""

from fractions import Fraction
from math import isinf, isnan

from exact_floats import (
    FORMATS,
    decode,
    encode,
    exact_product,
    exact_quotient,
    exact_sum,
    flush,
    is_zero,
    negative,
    relu,
    saturate,
    sqrt_bits,
)


def modifiers(opcode):
    return opcode.split(".")[1:]


def rounding(mods):
    return next((m for m in mods if m in ("rn", "rz", "rm", "rp", "rna")), "rn")


def finish(fmt, bits, mods):
    bits = flush(fmt, bits) if "ftz" in mods else bits
    bits = saturate(fmt, bits) if "sat" in mods else bits
    return relu(fmt, bits) if "relu" in mods else bits


def arithmetic(opcode, exact):
    """A correctly rounded operation; `exact` maps values to the infinitely precise result."""
    mods = modifiers(opcode)
    fmt = FORMATS[mods[-1]]

    def oracle(*bits):
        bits = [flush(fmt, b) for b in bits] if "ftz" in mods else bits
        value = exact(*(decode(fmt, b) for b in bits), rounding(mods))
        return finish(fmt, encode(fmt, value, rounding(mods)), mods)

    return oracle


def exact_fma(a, b, c, mode):
    return exact_sum(exact_product(a, b), c, mode)


EXACT = {
    "add": exact_sum,
    "sub": lambda a, b, mode: exact_sum(a, -b, mode),
    "mul": lambda a, b, mode: exact_product(a, b),
    "fma": exact_fma,
    "mad": exact_fma,
    "div": lambda a, b, mode: exact_quotient(a, b),
    "rcp": lambda a, mode: exact_quotient(Fraction(1), a),
}


def square_root(opcode):
    mods = modifiers(opcode)
    fmt = FORMATS[mods[-1]]

    def oracle(bits):
        bits = flush(fmt, bits) if "ftz" in mods else bits
        return finish(fmt, sqrt_bits(fmt, decode(fmt, bits), rounding(mods)), mods)

    return oracle


def nan(x):
    return isinstance(x, float) and isnan(x)


def order_key(x):
    """-0.0 is less than +0.0 for min and max."""
    return (x, 0 if negative(x) else 1)


def extremum(opcode):
    """min/max: a number wins over NaN unless .NaN; -0 < +0; .xorsign.abs multiplies the signs."""
    mods = modifiers(opcode)
    fmt = FORMATS[mods[-1]]
    pick = min if opcode.startswith("min") else max

    def oracle(a, b):
        a, b = (flush(fmt, v) for v in (a, b)) if "ftz" in mods else (a, b)
        sign = (a ^ b) & fmt.sign_bit
        if "abs" in mods:
            a, b = a & ~fmt.sign_bit, b & ~fmt.sign_bit
        numbers = [v for v in (a, b) if not nan(decode(fmt, v))]
        if not numbers or (len(numbers) == 1 and "NaN" in mods):
            return fmt.canonical_nan
        result = pick(numbers, key=lambda v: order_key(decode(fmt, v)))
        return result | sign if "xorsign" in mods else result

    return oracle


def sign_change(opcode):
    mods = modifiers(opcode)
    fmt = FORMATS[mods[-1]]

    def oracle(a):
        a = flush(fmt, a) if "ftz" in mods else a
        return a ^ fmt.sign_bit if opcode.startswith("neg") else a & ~fmt.sign_bit

    return oracle


def copysign_oracle(opcode):
    fmt = FORMATS[modifiers(opcode)[-1]]
    return lambda a, b: (a & fmt.sign_bit) | (b & ~fmt.sign_bit)


def property_oracle(opcode):
    kind, name = modifiers(opcode)
    fmt = FORMATS[name]

    def oracle(a):
        x = decode(fmt, a)
        infinite = isinstance(x, float) and isinf(x)
        small = isinstance(x, Fraction) and abs(x) < Fraction(2) ** fmt.smallest_exponent
        return int({"finite": not nan(x) and not infinite, "infinite": infinite, "number": not nan(x),
                    "notanumber": nan(x), "normal": isinstance(x, Fraction) and not small, "subnormal": small}[kind])

    return oracle


def compare(cmp, x, y):
    """An ordered comparison is false with NaN, an unordered one (..u) true."""
    unordered = nan(x) or nan(y)
    if cmp in ("num", "nan"):
        return unordered == (cmp == "nan")
    if unordered:
        return cmp.endswith("u")
    x, y = (0 if is_zero(v) else v for v in (x, y))
    return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[cmp[:2]]


def setp_float(opcode):
    mods = modifiers(opcode)
    fmt = FORMATS[mods[-1]]

    def oracle(a, b):
        a, b = (flush(fmt, v) for v in (a, b)) if "ftz" in mods else (a, b)
        return int(compare(mods[0], decode(fmt, a), decode(fmt, b)))

    return oracle


def packed(oracle):
    """The same operation on both halves of f16x2 or bf16x2 registers."""

    def both(*bits):
        return oracle(*(b & 0xFFFF for b in bits)) | oracle(*(b >> 16 for b in bits)) << 16

    return both
