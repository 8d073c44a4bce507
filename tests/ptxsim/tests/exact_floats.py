"""IEEE formats in exact rational arithmetic: the oracle of the truth tables.

A value is a Fraction when it is finite and not zero; zeros, infinities and NaN are Python
floats (so that -0.0 keeps its sign). Nothing here uses the machine's own rounding.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import copysign, inf, isinf, isnan, isqrt, nan


@dataclass(frozen=True)
class Format:
    name: str
    exponent_bits: int
    mantissa_bits: int
    canonical_nan: int
    finite: bool = False    # no infinity: the largest exponent is one like the others, and NaN has all bits set

    @property
    def width(self):
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self):
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def smallest_exponent(self):
        return 1 - self.bias

    @property
    def inf_bits(self):
        """The code after the largest number; of a finite format, NaN's."""
        if self.finite:
            return (1 << (self.width - 1)) - 1
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def largest_bits(self):
        return self.inf_bits - 1

    @property
    def sign_bit(self):
        return 1 << (self.width - 1)


F16 = Format("f16", 5, 10, 0x7FFF)
BF16 = Format("bf16", 8, 7, 0x7FFF)
TF32 = Format("tf32", 8, 10, 0x3FFFF)
F32 = Format("f32", 8, 23, 0x7FFFFFFF)
F64 = Format("f64", 11, 52, 0xFFF8000000000000)
E4M3 = Format("e4m3", 4, 3, 0x7F, finite=True)
E5M2 = Format("e5m2", 5, 2, 0x7F)
FORMATS = {f.name: f for f in (F16, BF16, F32, F64, E4M3, E5M2)}


def is_zero(x):
    return not isinstance(x, Fraction) and x == 0.0


def negative(x):
    return x < 0 if isinstance(x, Fraction) else copysign(1.0, x) < 0


def decode(fmt, bits):
    sign = -1 if bits & fmt.sign_bit else 1
    exponent = (bits >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    mantissa = bits & ((1 << fmt.mantissa_bits) - 1)
    if fmt.finite and bits & ~fmt.sign_bit == fmt.inf_bits:
        return nan
    if not fmt.finite and exponent == (1 << fmt.exponent_bits) - 1:
        return nan if mantissa else sign * inf
    if exponent == 0 and mantissa == 0:
        return sign * 0.0
    if exponent:
        mantissa |= 1 << fmt.mantissa_bits
    scale = max(exponent, 1) - fmt.bias - fmt.mantissa_bits
    return sign * Fraction(mantissa) * Fraction(2) ** scale


def floor_log2(x):
    """The largest e with 2**e <= x, for a positive Fraction."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def round_to_integer(x, mode, sign):
    """x >= 0 to an integer; sign is that of the number x is the magnitude of."""
    whole, rest = divmod(x, 1)
    whole = int(whole)
    if mode == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole & 1)
    elif mode == "rna":
        up = rest >= Fraction(1, 2)
    else:
        up = rest > 0 and ((mode == "rp" and sign > 0) or (mode == "rm" and sign < 0))
    return whole + bool(up)


def encode(fmt, x, mode="rn"):
    """The bits of x rounded into fmt; NaN becomes the format's canonical NaN."""
    if not isinstance(x, Fraction):
        if isnan(x):
            return fmt.canonical_nan
        sign = fmt.sign_bit if copysign(1.0, x) < 0 else 0
        return sign | (fmt.inf_bits if isinf(x) else 0)
    sign, magnitude = (-1, -x) if x < 0 else (1, x)
    exponent = max(floor_log2(magnitude), fmt.smallest_exponent)
    unit = Fraction(2) ** (exponent - fmt.mantissa_bits)
    steps = round_to_integer(magnitude / unit, mode, sign)
    # steps carries the hidden bit, so adding it to the exponent field also rounds up into the next binade.
    bits = ((exponent - fmt.smallest_exponent) << fmt.mantissa_bits) + steps
    if bits >= fmt.inf_bits:
        stays_finite = mode == "rz" or (mode == "rp" and sign < 0) or (mode == "rm" and sign > 0)
        bits = fmt.largest_bits if stays_finite else fmt.inf_bits
    return bits | (fmt.sign_bit if sign < 0 else 0)


def is_subnormal(fmt, bits):
    exponent_is_zero = not (bits >> fmt.mantissa_bits) & ((1 << fmt.exponent_bits) - 1)
    return exponent_is_zero and bits & ((1 << fmt.mantissa_bits) - 1) != 0


def flush(fmt, bits):
    """.ftz: a subnormal becomes the zero of its sign."""
    return bits & fmt.sign_bit if is_subnormal(fmt, bits) else bits


def saturate(fmt, bits):
    """.sat: into [+0, 1]; NaN becomes +0."""
    x = decode(fmt, bits)
    if isnan(x) or negative(x) or is_zero(x):
        return 0
    return bits if x < 1 else encode(fmt, Fraction(1))


def relu(fmt, bits):
    """.relu: negative becomes +0; NaN becomes the canonical NaN."""
    x = decode(fmt, bits)
    if isnan(x):
        return fmt.canonical_nan
    return 0 if negative(x) else bits


def exact_sum(x, y, mode="rn"):
    finite = [v for v in (x, y) if isinstance(v, Fraction)]
    if len(finite) == 2:
        total = x + y
        return total if total else (-0.0 if mode == "rm" else 0.0)
    if len(finite) == 1:
        other = y if isinstance(x, Fraction) else x
        return finite[0] if is_zero(other) else other
    if is_zero(x) and is_zero(y) and negative(x) != negative(y):
        return -0.0 if mode == "rm" else 0.0
    return x + y


def exact_product(x, y):
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * y
    sign = -1.0 if negative(x) != negative(y) else 1.0
    if any(not isinstance(v, Fraction) and isnan(v) for v in (x, y)):
        return nan
    infinite = any(not isinstance(v, Fraction) and isinf(v) for v in (x, y))
    zero = is_zero(x) or is_zero(y)
    if infinite and zero:
        return nan
    return sign * (inf if infinite else 0.0)


def exact_quotient(x, y):
    if isinstance(y, Fraction):
        return exact_product(x, 1 / y)
    if isnan(y) or (is_zero(y) and is_zero(x)):
        return nan
    return exact_product(x, copysign(inf if is_zero(y) else 0.0, y))


def sqrt_bits(fmt, x, mode="rn"):
    """The square root of x, rounded: enough bits of an integer root and one sticky bit."""
    if not isinstance(x, Fraction):
        return encode(fmt, x if isnan(x) or is_zero(x) or x > 0 else nan)
    if x < 0:
        return fmt.canonical_nan
    shift = 2 * (fmt.mantissa_bits + fmt.bias + 8)
    scaled = x * Fraction(4) ** shift
    root = isqrt(scaled.numerator // scaled.denominator)
    sticky = 0 if root * root == scaled else Fraction(1, 2)
    return encode(fmt, (root + sticky) / Fraction(2) ** shift, mode)


def edge_bits(fmt):
    """Zeros, subnormals, ones, halves, extremes, infinities and NaN of both signs."""
    m = fmt.mantissa_bits
    one = fmt.bias << m
    positive = [0, 1, (1 << m) - 1, 1 << m, one, one + 1, one - 1, one - (1 << m), one + (1 << m),
                one + (1 << m) + (1 << (m - 1)), fmt.largest_bits, fmt.inf_bits, fmt.inf_bits | (1 << (m - 1)) | 1]
    return positive + [b | fmt.sign_bit for b in positive]
