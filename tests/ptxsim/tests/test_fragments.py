"""mma and ldmatrix against the ISA's layout tables, one element hot at a time: PTX ISA 9.7.14."""

import subprocess
from pathlib import Path

import numpy as np
import ptxsim
import pytest
from fragments import CODECS, FP8, SHAPES, Shape, ldmatrix_element, to_matrix, to_registers
from truth import module_text

BY_OPCODE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.opcode.removeprefix("mma.sync.aligned."))


def transfer(operation, space, names, width, address):
    return "\n".join(f"  {operation}.{space}.b{width} " + (f"%{n}, [{address}+{i * width // 8}];" if operation == "ld" else
                                                          f"[{address}+{i * width // 8}], %{n};") for i, n in enumerate(names))


def mma_text(shape, name="mma"):
    """Warp (block) w multiplies fragments w: registers are loaded and stored just as they are."""
    names = {o: [f"{o}{i}" for i in range(shape.registers(o))] for o in "abc"}
    width = {o: shape.register_width(o) for o in "abc"}
    parts = [f".visible .entry {name}(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd)", "{",
             "  .reg .b64 %pa, %pb, %pc, %pd; .reg .b32 %i, %w;", "  mov.u32 %i, %tid.x; mov.u32 %w, %ctaid.x; mad.lo.u32 %i, %w, 32, %i;"]
    for o in "abc":
        parts.append(f"  .reg .b{width[o]} " + ", ".join("%" + n for n in names[o]) + ";")
        parts.append(f"  ld.param.u64 %p{o}, [p{o}]; mad.wide.u32 %p{o}, %i, {len(names[o]) * width[o] // 8}, %p{o};")
        parts.append(transfer("ld", "global", names[o], width[o], f"%p{o}"))
    parts.append(f"  ld.param.u64 %pd, [pd]; mad.wide.u32 %pd, %i, {len(names['c']) * width['c'] // 8}, %pd;")
    a, b, c = ("{" + ", ".join("%" + n for n in names[o]) + "}" for o in "abc")
    parts.append(f"  {shape.opcode} {c}, {a}, {b}, {c};")
    parts.append(transfer("st", "global", names["c"], width["c"], "%pd"))
    return "\n".join(parts) + "\n  ret;\n}\n"


def multiply(shape, a, b, c):
    """D of a batch of problems, through the engine."""
    dev = ptxsim.Device(profile=shape.target, threads=1)
    kernel = ptxsim.load_ptx(module_text(shape.target, [mma_text(shape)])).kernel("mma")
    arguments = [dev.tensor(np.stack([to_registers(shape, o, m) for m in batch]), name=o)
                 for o, batch in (("a", a), ("b", b), ("c", c))]
    d = dev.tensor(np.zeros((len(a), 32, shape.registers("c")), arguments[2].numpy().dtype), name="d")
    dev.launch(kernel, len(a), 32, [*arguments, d])
    return np.stack([to_matrix(shape, "c", registers) for registers in d.numpy()])


def distinct(shape, operand):
    """Numbers that the operand's type holds exactly, all different where they fit: integers, or the middle codes of 8-bit floats."""
    extent, kind = shape.extent(operand), shape.kind(operand)
    index = np.arange(extent[0] * extent[1]).reshape(extent)
    if kind not in FP8:
        return index % 113 + 1
    values = [CODECS[kind][2](code) for code in range(0x28, 0x58)]
    return np.array(values)[index % len(values)]


def hot(extent):
    """One problem an element: that element is 1, the rest 0."""
    return np.eye(extent[0] * extent[1]).reshape(-1, *extent)


@BY_OPCODE
def test_each_element_of_a_multiplies_its_row_of_b(shape):
    a, b = hot(shape.extent("a")), distinct(shape, "b")
    count = len(a)
    d = multiply(shape, a, [b] * count, [np.zeros(shape.extent("c"))] * count)
    assert np.array_equal(d, a @ b)


@BY_OPCODE
def test_each_element_of_b_multiplies_its_column_of_a(shape):
    a, b = distinct(shape, "a"), hot(shape.extent("b"))
    count = len(b)
    d = multiply(shape, [a] * count, b, [np.zeros(shape.extent("c"))] * count)
    assert np.array_equal(d, a @ b)


@BY_OPCODE
def test_each_element_of_c_is_added_in_its_place(shape):
    a, b, c = distinct(shape, "a") // 1 % 5, distinct(shape, "b") // 1 % 5, hot(shape.extent("c"))
    d = multiply(shape, [a] * len(c), [b] * len(c), c)
    assert np.array_equal(d, a @ b + c)


@BY_OPCODE
def test_signed_problems_are_exact(shape):
    rng = np.random.default_rng(0)
    low = {"u8": 0}
    a = [rng.integers(low.get(shape.a, -8), 9, shape.extent("a")) for _ in range(8)]
    b = [rng.integers(low.get(shape.b, -8), 9, shape.extent("b")) for _ in range(8)]
    c = [rng.integers(-99, 100, shape.extent("c")) for _ in range(8)]
    assert np.array_equal(multiply(shape, a, b, c), np.stack(a) @ np.stack(b) + np.stack(c))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.acc in ("f32", "f16", "f64")], ids=lambda s: s.opcode)
def test_nan_and_infinity_reach_only_their_row_and_column(shape):
    a, b = np.ones(shape.extent("a")), np.ones(shape.extent("b"))
    bits = {"f16": 0x7E00, "bf16": 0x7FC0, "tf32": 0x7FC00000, "f64": 0x7FF8 << 48, "e4m3": 0x7F, "e5m2": 0x7E}[shape.a]
    registers = to_registers(shape, "a", a)
    per = shape.register_width("a") // CODECS[shape.a][0]
    place = next(e for e in range(shape.elements("a")) if shape.place("a", 5, e)[0] == 1)
    width, shift = CODECS[shape.a][0], CODECS[shape.a][0] * (place % per)
    word = int(registers[5, place // per]) & ~((1 << width) - 1 << shift) | bits << shift
    registers[5, place // per] = word
    dev = ptxsim.Device(profile=shape.target, threads=1)
    kernel = ptxsim.load_ptx(module_text(shape.target, [mma_text(shape)])).kernel("mma")
    fragments = [registers, to_registers(shape, "b", b), to_registers(shape, "c", np.zeros(shape.extent("c")))]
    d = dev.tensor(np.zeros_like(fragments[2]), name="d")
    dev.launch(kernel, 1, 32, [*(dev.tensor(f) for f in fragments), d])
    nan = np.isnan(to_matrix(shape, "c", d.numpy()))
    assert nan[1].all() and nan.sum() == shape.n


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_products_are_not_rounded_before_the_sum(kind):
    """(1+u)² - 1 - 2u = u² survives only if the products are exact and summed in f32 at least."""
    shape = Shape(16, 8, 16, kind, kind, "f32")
    u = 2.0**-7 if kind == "bf16" else 2.0**-10
    a, b, c = np.zeros((16, 16)), np.zeros((16, 8)), np.full((16, 8), -1.0)
    a[:, 0], b[0, :] = 1 + u, 1 + u
    a[:, 3], b[3, :] = -2 * u, 1
    assert np.array_equal(multiply(shape, [a], [b], [c])[0], np.full((16, 8), u * u))


def test_integer_mma_saturates_only_when_told():
    plain = Shape(16, 8, 32, "s8", "s8", "s32")
    a, b, c = (np.full(plain.extent(o), v) for o, v in (("a", 127), ("b", 127), ("c", 2**31 - 1)))
    assert (multiply(plain, [a], [b], [c])[0] == 127 * 127 * 32 - 2**31 - 1).all()

    class Clamped(Shape):
        opcode = plain.opcode.replace(".s32.s8.s8.s32", ".satfinite.s32.s8.s8.s32")
    clamped = Clamped(16, 8, 32, "s8", "s8", "s32")
    assert (multiply(clamped, [a], [b], [c])[0] == 2**31 - 1).all()


LDMATRIX = """.visible .entry ldm(.param .u64 order, .param .u64 out)
{{
  .reg .b64 %o, %p; .reg .b32 %t, %v, %s, %r<4>;
  .shared .align 16 .b8 room[512];
  ld.param.u64 %o, [order]; ld.param.u64 %p, [out];
  mov.u32 %t, %tid.x; mov.u32 %s, room;
  mad.lo.u32 %v, %t, 16, %s;
  .reg .b32 %w, %x; mul.lo.u32 %x, %t, 8; mov.u32 %w, 0;
FILL:
  .reg .b32 %lo, %hi, %pair; add.u32 %lo, %x, %w; add.u32 %hi, %lo, 1; shl.b32 %hi, %hi, 16; or.b32 %pair, %hi, %lo;
  st.shared.b32 [%v], %pair; add.u32 %v, %v, 4; add.u32 %w, %w, 2;
  .reg .pred %q; setp.lt.u32 %q, %w, 8; @%q bra FILL;
  bar.sync 0;
  mul.wide.u32 %o, %t, 4; ld.param.u64 %p, [order]; add.u64 %o, %o, %p; ld.global.b32 %v, [%o];
  add.u32 %v, %v, %s;
  ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%v];
  ld.param.u64 %p, [out]; mul.wide.u32 %o, %t, {size}; add.u64 %p, %p, %o;
{stores}
  ret;
}}
"""


def ldmatrix_text(count, trans):
    names = [f"r{i}" for i in range(count)]
    return LDMATRIX.format(count=count, trans=".trans" if trans else "", registers=", ".join("%" + n for n in names), size=4 * count,
                           stores=transfer("st", "global", names, 32, "%p"))


@pytest.mark.parametrize("trans", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("count", [1, 2, 4], ids=["x1", "x2", "x4"])
def test_ldmatrix(count, trans, device):
    """Row r of matrix m comes from the address of lane 8m + r; the addresses of further lanes are not looked at."""
    rng = np.random.default_rng(count)
    order = rng.permutation(32)                                     # which 16-byte row each lane points at
    addresses = (order * 16).astype(np.uint32)
    addresses[8 * count:] = 0xFFFF0001                              # nonsense, and misaligned
    kernel = ptxsim.load_ptx(module_text("sm_80", [ldmatrix_text(count, trans)])).kernel("ldm")
    out = device.tensor(np.zeros((32, count), np.uint32), name="out")
    device.launch(kernel, 1, 32, [device.tensor(addresses, name="order"), out])
    room = np.arange(256).reshape(32, 8)                            # element e of row r is 8r + e
    for lane in range(32):
        for m in range(count):
            for half in (0, 1):
                row, col = ldmatrix_element(lane, half, trans)
                assert int(out.numpy()[lane, m]) >> 16 * half & 0xFFFF == room[order[8 * m + row], col], (lane, m, half)


def test_ptxas_accepts_the_texts(nvcc, tmp_path):
    entries = {"sm_80": [ldmatrix_text(n, t).replace("entry ldm", f"entry ldm{n}{int(t)}") for n in (1, 2, 4) for t in (0, 1)],
               "sm_89": []}
    for i, shape in enumerate(SHAPES):
        entries[shape.target].append(mma_text(shape, f"mma{i}"))
    for target, texts in entries.items():
        (tmp_path / "m.ptx").write_text(module_text(target, texts))
        command = [str(Path(nvcc).with_name("ptxas")), "-O0", "-arch", target, str(tmp_path / "m.ptx"), "-o", str(tmp_path / "out")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
