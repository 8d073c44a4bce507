"""Where each element of a tensor-core fragment lies: (lane, elem) -> (row, col), from the tables of PTX ISA 9.7.14.5.

`elem` counts through the registers of a lane, low part first. g is the ISA's groupID, t its threadID_in_group.
"""

import functools
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

import numpy as np
from exact_floats import BF16, E4M3, E5M2, F16, F32, F64, decode, encode


def split(lane):
    return lane >> 2, lane & 3


def a_element(shape, lane, elem):
    """A is m × k, row-major. Runs of `run` neighbours along k; then the rows g and g+8; then the other half of k."""
    g, t = split(lane)
    run, half = shape.run, shape.k // 2
    row = g + 8 * (elem // run % 2) if shape.m == 16 else g
    upper = elem // (2 * run)
    return row, t * run + elem % run + (half if upper else 0)


def b_element(shape, lane, elem):
    """B is k × n, column-major: column g, runs along k, then the other half of k."""
    g, t = split(lane)
    return t * shape.run + elem % shape.run + (shape.k // 2 if elem >= shape.run else 0), g


def c_element(shape, lane, elem):
    """C and D are m × n: two neighbours in row g, then two in row g+8."""
    g, t = split(lane)
    return g + 8 * (elem // 2), t * 2 + elem % 2


def ldmatrix_element(lane, half, trans):
    """The element of an 8×8 matrix that half `half` of a lane's register receives."""
    g, t = split(lane)
    return (t * 2 + half, g) if trans else (g, t * 2 + half)


def fraction(x):
    x = float(x)
    return Fraction(x) if x and isfinite(x) else x


def to_float_bits(fmt):
    return functools.cache(lambda x: encode(fmt, fraction(x)))


def from_float_bits(fmt):
    return functools.cache(lambda b: float(decode(fmt, b)))


def to_integer_bits(width):
    return lambda x: int(x) & ((1 << width) - 1)


def from_signed(width):
    return lambda b: b - (1 << width) if b >> (width - 1) else b


# kind -> (bits, encode, decode)
CODECS = {
    "f16": (16, to_float_bits(F16), from_float_bits(F16)),
    "bf16": (16, to_float_bits(BF16), from_float_bits(BF16)),
    "tf32": (32, to_float_bits(F32), from_float_bits(F32)),
    "f32": (32, to_float_bits(F32), from_float_bits(F32)),
    "f64": (64, to_float_bits(F64), from_float_bits(F64)),
    "e4m3": (8, to_float_bits(E4M3), from_float_bits(E4M3)),
    "e5m2": (8, to_float_bits(E5M2), from_float_bits(E5M2)),
    "s8": (8, to_integer_bits(8), from_signed(8)),
    "u8": (8, to_integer_bits(8), lambda b: b),
    "s32": (32, to_integer_bits(32), from_signed(32)),
}


@dataclass(frozen=True)
class Shape:
    m: int
    n: int
    k: int
    a: str
    b: str
    acc: str

    @property
    def opcode(self):
        return f"mma.sync.aligned.m{self.m}n{self.n}k{self.k}.row.col.{self.acc}.{self.a}.{self.b}.{self.acc}"

    @property
    def target(self):
        return "sm_89" if self.a in FP8 else "sm_80"

    @property
    def run(self):
        """Elements of one operand register."""
        return max(1, 32 // CODECS[self.a][0])

    def elements(self, operand):
        size = {"a": self.m * self.k, "b": self.k * self.n, "c": self.m * self.n}[operand]
        return size // 32

    def kind(self, operand):
        return {"a": self.a, "b": self.b, "c": self.acc}[operand]

    def extent(self, operand):
        return {"a": (self.m, self.k), "b": (self.k, self.n), "c": (self.m, self.n)}[operand]

    def place(self, operand, lane, elem):
        return {"a": a_element, "b": b_element, "c": c_element}[operand](self, lane, elem)

    def register_width(self, operand):
        return max(32, CODECS[self.kind(operand)][0])

    def registers(self, operand):
        return self.elements(operand) * CODECS[self.kind(operand)][0] // self.register_width(operand)


def to_registers(shape, operand, matrix):
    """A matrix as the registers of 32 lanes."""
    bits, coded, _ = CODECS[shape.kind(operand)]
    width = shape.register_width(operand)
    out = np.zeros((32, shape.registers(operand)), np.uint64 if width == 64 else np.uint32)
    per = width // bits
    for lane in range(32):
        for elem in range(shape.elements(operand)):
            row, col = shape.place(operand, lane, elem)
            out[lane, elem // per] |= out.dtype.type(coded(matrix[row, col]) << bits * (elem % per))
    return out


def to_matrix(shape, operand, registers):
    """The inverse: registers of 32 lanes as a matrix of floats."""
    bits, _, decoded = CODECS[shape.kind(operand)]
    per = shape.register_width(operand) // bits
    out = np.full(shape.extent(operand), np.nan)
    for lane in range(32):
        for elem in range(shape.elements(operand)):
            word = int(registers[lane, elem // per]) >> bits * (elem % per)
            out[shape.place(operand, lane, elem)] = decoded(word & ((1 << bits) - 1))
    return out


FP8 = ("e4m3", "e5m2")
SHAPES = [Shape(16, 8, k, kind, kind, acc) for k in (8, 16) for kind, acc in
          (("f16", "f32"), ("f16", "f16"), ("bf16", "f32"))]
SHAPES += [Shape(16, 8, 4, "tf32", "tf32", "f32"), Shape(16, 8, 8, "tf32", "tf32", "f32"), Shape(8, 8, 4, "f64", "f64", "f64")]
SHAPES += [Shape(16, 8, k, a, b, "s32") for k in (16, 32) for a in ("s8", "u8") for b in ("s8", "u8")]
SHAPES += [Shape(16, 8, k, a, b, acc) for k in (16, 32) for a in FP8 for b in FP8 for acc in ("f32", "f16")]
