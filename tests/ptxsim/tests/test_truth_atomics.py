"""atom and red, every operation and type: PTX ISA 9.7.13.6 and 9.7.13.7. One lane an address; contention is in the cases."""

from fractions import Fraction  # noqa: F401  (values of the oracles)

import numpy as np
import ptxsim
import pytest
from exact_floats import F32, is_subnormal
from float_oracles import EXACT, arithmetic, packed
from test_truth_int import value, wrap
from truth import Row, cases, check_row, module_text

SHARED = ".shared .align 16 .b8 room[1024]; mov.u32 %i, %tid.x; mov.u32 %n, room; mad.lo.u32 %i, %i, 16, %n;"


def increment(old, limit):
    return 0 if old >= limit else old + 1


def decrement(old, limit):
    return limit if old == 0 or old > limit else old - 1


def integer_operations():
    """(name, type, function of old and operand)."""
    for kind in ("u32", "s32", "u64"):
        yield "add", kind, lambda a, b, k=kind: wrap(k, a + b)
    for kind in ("u32", "s32", "u64", "s64"):
        yield "min", kind, lambda a, b, k=kind: wrap(k, min(value(k, a), value(k, b)))
        yield "max", kind, lambda a, b, k=kind: wrap(k, max(value(k, a), value(k, b)))
    for kind in ("b32", "b64"):
        yield "and", kind, int.__and__
        yield "or", kind, int.__or__
        yield "xor", kind, int.__xor__
        yield "exch", kind, lambda a, b: b
    yield "inc", "u32", increment
    yield "dec", "u32", decrement


def float_operations():
    """(opcode tail, type, oracle in global memory, oracle in shared memory, target)."""
    # The manual: atom.add.f32 flushes subnormals in global memory and keeps them in shared memory.
    yield "add", "f32", arithmetic("add.rn.ftz.f32", EXACT["add"]), arithmetic("add.rn.f32", EXACT["add"]), "sm_80"
    for kind, tail, half, target in (("f64", "add", "f64", "sm_80"), ("f16", "add.noftz", "f16", "sm_80"),
                                     ("f16x2", "add.noftz", "f16", "sm_80"), ("bf16", "add.noftz", "bf16", "sm_90"),
                                     ("bf16x2", "add.noftz", "bf16", "sm_90")):
        oracle = arithmetic(f"add.rn.{half}", EXACT["add"])
        oracle = packed(oracle) if kind.endswith("x2") else oracle
        yield tail, kind, oracle, oracle, target


def returning(oracle):
    return lambda a, b: (a, oracle(a, b))


def rows_of(tail, kind, in_global, in_shared, target):
    """atom gives the old value and leaves the new one; red only leaves it."""
    bits = {"16": 16, "32": 32, "64": 64}[str(register_width(kind))]
    table = cases(kind, kind)
    for sem in ("", ".relaxed.gpu", ".acq_rel.sys"):
        yield Row(f"atom{sem}.global.{tail}.{kind} %d, [%row], %b; ld.global.b{bits} %e, [%row];", (kind, kind), (kind, kind),
                  returning(in_global), table, target)
    yield Row(f"atom.{tail}.{kind} %d, [%row], %b; ld.b{bits} %e, [%row];", (kind, kind), (kind, kind), returning(in_global),
              table, target)
    yield Row(f"{{ {SHARED} st.shared.b{bits} [%i], %a; atom.shared.{tail}.{kind} %d, [%i], %b; ld.shared.b{bits} %e, [%i]; }}",
              (kind, kind), (kind, kind), returning(in_shared), table, target, note=f"atom.shared.{tail}.{kind}")
    if tail != "exch":
        yield Row(f"red.global.{tail}.{kind} [%row], %b; ld.global.b{bits} %d, [%row];", (kind, kind), (kind,), in_global,
                  table, target)
        yield Row(f"red.release.gpu.global.{tail}.{kind} [%row], %b; ld.global.b{bits} %d, [%row];", (kind, kind), (kind,),
                  in_global, table, target)
        yield Row(f"{{ {SHARED} st.shared.b{bits} [%i], %a; red.shared.{tail}.{kind} [%i], %b; ld.shared.b{bits} %d, [%i]; }}",
                  (kind, kind), (kind,), in_shared, table, target, note=f"red.shared.{tail}.{kind}")


def register_width(kind):
    from truth import WIDTHS
    return WIDTHS[kind]


def swap_rows():
    """cas stores c where the old value equals b."""
    for kind in ("b16", "b32", "b64"):
        bits = register_width(kind)
        plain = cases(kind, kind, kind, limit=120)
        table = plain + tuple((a, a, c) for a, _, c in plain[:60])
        oracle = lambda a, b, c: (a, c if a == b else a)
        yield Row(f"atom.global.cas.{kind} %d, [%row], %b, %c; ld.global.b{bits} %e, [%row];", (kind,) * 3, (kind, kind), oracle, table)
        yield Row(f"atom.acquire.cta.global.cas.{kind} %d, [%row], %b, %c; ld.global.b{bits} %e, [%row];", (kind,) * 3, (kind, kind),
                  oracle, table)
        yield Row(f"{{ {SHARED} st.shared.b{bits} [%i], %a; atom.shared.cas.{kind} %d, [%i], %b, %c; ld.shared.b{bits} %e, [%i]; }}",
                  (kind,) * 3, (kind, kind), oracle, table, note=f"atom.shared.cas.{kind}")


def vector_rows():
    """red of two and four floats at once, sm_90; what they do with subnormals is not written down."""
    add = arithmetic("add.rn.ftz.f32", EXACT["add"])
    both = lambda a, b: add(a & 0xFFFFFFFF, b & 0xFFFFFFFF) | add(a >> 32, b >> 32) << 32
    pairs = tuple((x | y << 32, y | x << 32) for x, y in cases("f32", "f32", limit=60) if normal(x, y))
    yield Row("{ .reg .f32 %f<2>; mov.b64 {%f0, %f1}, %b; red.global.add.v2.f32 [%row], {%f0, %f1}; ld.global.b64 %d, [%row]; }",
              ("b64", "b64"), ("b64",), both, pairs, "sm_90", note="red.v2.f32", tolerance=pair_mismatch)
    yield Row("{ .reg .f32 %f<4>; mov.b64 {%f0, %f1}, %a; mov.b64 {%f2, %f3}, %b; red.global.add.v4.f32 [%row], {%f0, %f1, %f2, %f3}; "
              "ld.global.v2.b64 {%d, %e}, [%row]; }", ("b64", "b64"), ("b64", "b64"), lambda a, b: (both(a, a), both(b, b)), pairs,
              "sm_90", note="red.v4.f32", tolerance=pair_mismatch)


def normal(x, y):
    return not any(is_subnormal(F32, v) for v in (x, y))


def pair_mismatch(kind, expected, got, case):
    def nan(v):
        return v & 0x7FFFFFFF > 0x7F800000
    for shift in (0, 32):
        want, have = expected >> shift & 0xFFFFFFFF, got >> shift & 0xFFFFFFFF
        if want != have and not (nan(want) and nan(have)):
            return f"expected 0x{expected:016x}, got 0x{got:016x}"
    return None


def every_row():
    for name, kind, function in integer_operations():
        yield from rows_of(name, kind, function, function, "sm_80")
    for tail, kind, in_global, in_shared, target in float_operations():
        yield from rows_of(tail, kind, in_global, in_shared, target)
    yield from swap_rows()
    yield from vector_rows()


ROWS = list(every_row())


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_atomic(row):
    check_row(row)


CONTENDED = """.visible .entry k(.param .u64 p)
{{
  .reg .b64 %p; .reg .b32 %t; .reg .{reg} %v;
  ld.param.u64 %p, [p];
  mov.u32 %t, %tid.x;
  {make}
  red.global.{op} [%p], %v;
  ret;
}}
"""


@pytest.mark.parametrize("op, make, reg, dtype, expected", [
    ("add.u32", "add.u32 %v, %t, 1;", "b32", np.uint32, 8 * 128 * 129 // 2),
    ("max.s32", "sub.s32 %v, 50, %t;", "b32", np.int32, 50),
    ("xor.b32", "shl.b32 %v, 1, %t;", "b32", np.uint32, 0),
    ("add.f32", "cvt.rn.f32.u32 %v, %t;", "f32", np.float32, 8 * 127 * 64),
    ("add.u64", "cvt.u64.u32 %v, %t;", "b64", np.uint64, 8 * 127 * 64),
], ids=lambda v: v if isinstance(v, str) and "." in v and ";" not in v else "")
def test_every_contender_is_counted(device, op, make, reg, dtype, expected):
    kernel = ptxsim.load_ptx(module_text("sm_80", [CONTENDED.format(op=op, make=make, reg=reg)])).kernel("k")
    cell = device.tensor(np.zeros(1, dtype), name="cell")
    device.launch(kernel, 8, 128, [cell])
    assert cell.numpy()[0] == expected


def test_the_order_of_float_atomics_comes_from_the_seed():
    """1e8 and ones in f32: the sum depends on the order, so several seeds must give several sums."""
    body = CONTENDED.format(op="add.f32", reg="f32", make="setp.eq.u32 %q, %t, 40; selp.f32 %v, 0f4CBEBC20, 0f3F99999A, %q;")
    body = body.replace(".reg .b64 %p;", ".reg .b64 %p; .reg .pred %q;")
    kernel = ptxsim.load_ptx(module_text("sm_80", [body])).kernel("k")
    sums = set()
    for seed in range(8):
        dev = ptxsim.Device(profile="sm_80", seed=seed, threads=1)
        cell = dev.tensor(np.zeros(1, np.float32), name="cell")
        dev.launch(kernel, 8, 128, [cell])
        sums.add(float(cell.numpy()[0]))
    assert len(sums) > 1
