"""Floating-point arithmetic of f32 and f64: PTX ISA 9.7.3."""

import pytest
from float_oracles import EXACT, arithmetic, copysign_oracle, extremum, property_oracle, setp_float, sign_change, square_root
from truth import Row, cases, check_row

ROUNDINGS = ("rn", "rz", "rm", "rp")
ARITY = {"add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "mad": 3, "rcp": 1, "sqrt": 1}
OPERANDS = {1: "%d, %a", 2: "%d, %a, %b", 3: "%d, %a, %b, %c"}


def rounded_opcodes():
    for name in ARITY:
        for mode in ROUNDINGS:
            yield f"{name}.{mode}.f32"
            yield f"{name}.{mode}.ftz.f32"
            yield f"{name}.{mode}.f64"
            if name not in ("div", "rcp", "sqrt"):
                yield f"{name}.{mode}.sat.f32"
                yield f"{name}.{mode}.ftz.sat.f32"
    yield from ("add.f32", "sub.ftz.f32", "mul.f32", "add.sat.f32", "mul.ftz.sat.f32", "add.f64", "sub.f64", "mul.f64")


def boundary_of_flush(row_oracle, opcode, case):
    """Whether .ftz looks before or after rounding is not written down: leave out results that round up to 2^-126."""
    mods = opcode.split(".")
    if "ftz" not in mods:
        return False
    return row_oracle(*case) & 0x7FFFFFFF == 0x00800000


def rounded_row(opcode):
    name, kind = opcode.split(".")[0], opcode.split(".")[-1]
    oracle = square_root(opcode) if name == "sqrt" else arithmetic(opcode, EXACT[name])
    table = cases(*[kind] * ARITY[name], limit=96 if kind == "f64" else 160)
    table = tuple(c for c in table if not boundary_of_flush(oracle, opcode, c))
    return Row(f"{opcode} {OPERANDS[ARITY[name]]};", (kind,) * ARITY[name], (kind,), oracle, table)


def extremum_rows():
    for name in ("min", "max"):
        for mods in ("f32", "ftz.f32", "NaN.f32", "ftz.NaN.f32", "f64", "xorsign.abs.f32", "NaN.xorsign.abs.f32"):
            opcode, kind = f"{name}.{mods}", mods.split(".")[-1]
            target = "sm_86" if "xorsign" in mods else "sm_80"
            yield Row(f"{opcode} %d, %a, %b;", (kind, kind), (kind,), extremum(opcode), cases(kind, kind), target)


def sign_rows():
    for opcode in ("neg.f32", "neg.ftz.f32", "neg.f64", "abs.f32", "abs.ftz.f32", "abs.f64"):
        kind = opcode.split(".")[-1]
        yield Row(f"{opcode} %d, %a;", (kind,), (kind,), sign_change(opcode), cases(kind))
    for kind in ("f32", "f64"):
        opcode = f"copysign.{kind}"
        yield Row(f"{opcode} %d, %a, %b;", (kind, kind), (kind,), copysign_oracle(opcode), cases(kind, kind), any_nan=False)


def property_rows():
    for kind in ("f32", "f64"):
        for test in ("finite", "infinite", "number", "notanumber", "normal", "subnormal"):
            opcode = f"testp.{test}.{kind}"
            yield Row(f"{opcode} %d, %a;", (kind,), ("pred",), property_oracle(opcode), cases(kind))


def setp_rows():
    for cmp in ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"):
        for mods in ("f32", "ftz.f32", "f64"):
            opcode, kind = f"setp.{cmp}.{mods}", mods.split(".")[-1]
            yield Row(f"{opcode} %d, %a, %b;", (kind, kind), ("pred",), setp_float(opcode), cases(kind, kind))


def special_rows():
    """Written out by hand, not computed: each line is a sentence of the manual."""
    one, nan, inf = 0x3F800000, 0x7FC00000, 0x7F800000
    table = [
        ("add.rn.sat.f32 %d, %a, %b;", ((nan, one, 0), (inf, inf | 1 << 31, 0), (one, one, one), (one | 1 << 31, 0, 0))),
        ("mul.rn.ftz.f32 %d, %a, %b;", ((0x00000001, inf, nan), (0x80000001, one, 0x80000000), (0x00800000, 0x3F000000, 0))),
        ("add.rm.f32 %d, %a, %b;", ((one, one | 1 << 31, 0x80000000), (0, 0x80000000, 0x80000000), (0, 0, 0))),
        ("fma.rn.f32 %d, %a, %b, %a;", ((0x3F800001, 0x3F800001, 0x40000002), (inf, 0, nan))),
        ("div.rn.f32 %d, %a, %b;", ((one, 0, inf), (one, 0x80000000, inf | 1 << 31), (0, 0, nan), (one, inf, 0))),
        ("min.f32 %d, %a, %b;", ((nan, one, one), (nan, nan, 0x7FFFFFFF), (0, 0x80000000, 0x80000000))),
        ("max.NaN.f32 %d, %a, %b;", ((nan, one, 0x7FFFFFFF), (one, nan, 0x7FFFFFFF), (0x80000000, 0, 0))),
    ]
    for op, lines in table:
        answers = {(a, b): d for a, b, d in lines}
        yield Row(op, ("f32", "f32"), ("f32",), lambda a, b, answers=answers: answers[a, b], tuple(answers),
                  any_nan="min" not in op and "max" not in op, note="by_hand")


ROWS = [*map(rounded_row, rounded_opcodes()), *extremum_rows(), *sign_rows(), *property_rows(), *setp_rows(), *special_rows()]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_float(row):
    check_row(row)
