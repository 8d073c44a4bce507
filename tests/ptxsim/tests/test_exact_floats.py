"""The oracle itself, against the machine's floating point."""

import math
from random import Random

import numpy as np
import pytest
from exact_floats import BF16, F16, F32, F64, decode, edge_bits, encode, exact_product, exact_quotient, exact_sum, sqrt_bits

NUMPY = {F16: (np.uint16, np.float16), F32: (np.uint32, np.float32), F64: (np.uint64, np.float64)}
OPERATIONS = {"add": (np.add, exact_sum), "mul": (np.multiply, exact_product), "div": (np.divide, exact_quotient)}


def pairs(fmt):
    rng = Random(7)
    values = edge_bits(fmt) + [rng.getrandbits(fmt.width) for _ in range(40)]
    return [(a, b) for a in values for b in values]


def same(fmt, want, got):
    return want == got or (math.isnan(float(decode(fmt, want))) and math.isnan(float(decode(fmt, got))))


@pytest.mark.parametrize("fmt", NUMPY, ids=lambda f: f.name)
@pytest.mark.parametrize("name", OPERATIONS)
def test_rounds_to_nearest_as_the_machine_does(fmt, name):
    unsigned, real = NUMPY[fmt]
    machine, exact = OPERATIONS[name]
    a, b = (np.array(column, unsigned) for column in zip(*pairs(fmt)))
    with np.errstate(all="ignore"):
        expected = machine(a.view(real), b.view(real)).view(unsigned).tolist()
    for (x, y), want in zip(pairs(fmt), expected):
        got = encode(fmt, exact(decode(fmt, x), decode(fmt, y)))
        assert same(fmt, want, got), (hex(x), hex(y), hex(want), hex(got))


@pytest.mark.parametrize("fmt", NUMPY, ids=lambda f: f.name)
def test_square_roots(fmt):
    unsigned, real = NUMPY[fmt]
    a = np.array([x for x, _ in pairs(fmt)[::3]], unsigned)
    with np.errstate(all="ignore"):
        expected = np.sqrt(a.view(real)).view(unsigned).tolist()
    for x, want in zip(a.tolist(), expected):
        assert same(fmt, want, sqrt_bits(fmt, decode(fmt, x))), hex(x)


@pytest.mark.parametrize("fmt", [F16, BF16, F32, F64], ids=lambda f: f.name)
def test_decode_then_encode_is_the_identity(fmt):
    for bits in edge_bits(fmt):
        value = decode(fmt, bits)
        if not (isinstance(value, float) and math.isnan(value)):
            for mode in ("rn", "rz", "rp", "rm"):
                assert encode(fmt, value, mode) == bits


def test_directed_modes_bracket_the_value():
    third = decode(F32, 0x3F800000) / 3
    assert encode(F32, third, "rm") == encode(F32, third, "rz") == 0x3EAAAAAA
    assert encode(F32, third, "rp") == encode(F32, third, "rn") == 0x3EAAAAAB
    assert encode(F32, -third, "rp") == 0xBEAAAAAA and encode(F32, -third, "rm") == 0xBEAAAAAB
    huge = decode(F32, F32.largest_bits) * 2
    assert encode(F32, huge, "rz") == F32.largest_bits and encode(F32, huge, "rn") == F32.inf_bits
