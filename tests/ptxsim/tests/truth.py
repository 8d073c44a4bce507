"""One tiny kernel per row of a truth table.

A row is an instruction over registers %a %b %c (inputs, one case a lane) and %d %e (outputs).
Types name both the register's width and how a failure is printed.
"""

from dataclasses import dataclass, field
from itertools import product
from math import isinf, isnan
from random import Random

import numpy as np
import ptxsim
from exact_floats import FORMATS, decode

WIDTHS = {"b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8, "pred": 32,
          "b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "tf32": 32,
          "e4m3x2": 16, "e5m2x2": 16, "b64": 64, "u64": 64, "s64": 64, "f64": 64}
PTX_VERSION = "9.0"


def bits_of(kind):
    return WIDTHS[kind]


def register_bits(kind):
    return max(16, 32 if WIDTHS[kind] == 8 else WIDTHS[kind])


@dataclass(frozen=True)
class Row:
    op: str                     # instructions over %a %b %c -> %d %e; %p %q are scratch predicates
    ins: tuple                  # types of %a, %b, %c
    outs: tuple                 # types of %d, %e
    oracle: object              # (bits, bits, ...) -> bits, or a tuple of bits
    cases: tuple                # tuples of input bits
    target: str = "sm_80"
    tolerance: object = None    # (kind, expected bits, got bits, inputs) -> None or why not
    any_nan: bool = True        # a NaN result may have any payload
    across: bool = False        # the oracle maps the cases of a whole warp to its outputs
    note: str = field(default="", compare=False)

    @property
    def id(self):
        text = " ".join(self.op.split()).replace("%", "").split(";")[0]
        return (text + (" " + self.note if self.note else "")).replace(" ", "_")


def declare(registers):
    return "\n".join(f"  .reg .{kind} %{name};" for name, kind in registers)


def load_input(name, kind, index, count):
    """Column `index` of the case table; every entry takes eight bytes."""
    width = register_bits(kind)
    lines = [f"  ld.global.b{width} {'%in_' + name if kind == 'pred' else '%' + name}, [%row+{8 * index}];"]
    if kind == "pred":
        lines.append(f"  setp.ne.u32 %{name}, %in_{name}, 0;")
    return "\n".join(lines)


def store_output(name, kind, index):
    if kind == "pred":
        return f"  selp.u32 %out_{name}, 1, 0, %{name};\n  st.global.b32 [%dst+{8 * index}], %out_{name};"
    return f"  st.global.b{register_bits(kind)} [%dst+{8 * index}], %{name};"


def entry_text(row, name="row"):
    ins, outs = list(zip("abc", row.ins)), list(zip("de", row.outs))
    registers = [("row", "b64"), ("dst", "b64"), ("i", "b32"), ("n", "b32"), ("k", "b32"), ("p", "pred"), ("q", "pred")]
    for reg, kind in ins + outs:
        registers.append((reg, "pred" if kind == "pred" else f"b{register_bits(kind)}"))
        if kind == "pred":
            registers.append((("in_" if reg in "abc" else "out_") + reg, "b32"))
    loads = "\n".join(load_input(reg, kind, i, len(ins)) for i, (reg, kind) in enumerate(ins))
    stores = "\n".join(store_output(reg, kind, i) for i, (reg, kind) in enumerate(outs))
    return f""".visible .entry {name}(.param .u64 in, .param .u64 out)
{{
{declare(registers)}
  ld.param.u64 %row, [in];
  ld.param.u64 %dst, [out];
  mov.u32 %i, %tid.x;
  mov.u32 %n, %ctaid.x;
  mov.u32 %k, %ntid.x;
  mad.lo.u32 %i, %n, %k, %i;
  mad.wide.u32 %row, %i, {8 * max(1, len(ins))}, %row;
  mad.wide.u32 %dst, %i, {8 * len(outs)}, %dst;
{loads}
  {row.op}
{stores}
  ret;
}}
"""


def module_text(target, entries):
    return f".version {PTX_VERSION}\n.target {target}\n.address_size 64\n\n" + "\n".join(entries)


def run_row(row, seed=0):
    """The outputs of every case as an array (cases, outs) of integers."""
    padded = list(row.cases) + [row.cases[-1]] * (-len(row.cases) % 32)
    table = np.array([[int(v) for v in case] or [0] for case in padded], dtype=np.uint64)
    kernel = ptxsim.load_ptx(module_text(row.target, [entry_text(row)])).kernel("row")
    kernel.program.registers = 16    # spares a run of ptxas a row; test_rows_assemble runs it once a table
    dev = ptxsim.Device(profile=row.target, seed=seed, threads=1)
    source = dev.tensor(table, name="cases")
    result = dev.tensor(np.zeros((len(padded), len(row.outs)), np.uint64), name="results")
    dev.launch(kernel, len(padded) // 32, 32, [source, result])
    return result.numpy()[: len(row.cases)].tolist()


def show(kind, bits):
    width = WIDTHS[kind]
    text = f"0x{bits:0{max(1, width // 4)}x}"
    if kind in FORMATS:
        value = decode(FORMATS[kind], bits)
        text += f" ({float(value)!r})"
    return text


def nan_bits(kind, bits):
    return kind in FORMATS and isnan_value(decode(FORMATS[kind], bits))


def isnan_value(value):
    return isinstance(value, float) and isnan(value)


def lanes(kind, bits):
    """A packed value as its halves, so that each half may be any NaN."""
    half = WIDTHS[kind] // 2
    return [(kind[:-2], bits & (1 << half) - 1), (kind[:-2], bits >> half)] if kind.endswith("x2") else [(kind, bits)]


def mismatch(row, kind, expected, got, case):
    if row.tolerance:
        return row.tolerance(kind, expected, got, case)
    for (k, want), (_, have) in zip(lanes(kind, expected), lanes(kind, got)):
        if want != have and not (row.any_nan and nan_bits(k, want) and nan_bits(k, have)):
            return f"expected {show(k, want)}, got {show(k, have)}"
    return None


def expectations(row):
    if not row.across:
        results = [row.oracle(*case) for case in row.cases]
    else:
        assert len(row.cases) % 32 == 0
        results = [d for w in range(0, len(row.cases), 32) for d in row.oracle(row.cases[w:w + 32])]
    return [r if isinstance(r, tuple) else (r,) for r in results]


def check_row(row):
    rows = run_row(row)
    wrong = []
    for case, expected, got in zip(row.cases, expectations(row), rows):
        for kind, want, have in zip(row.outs, expected, got):
            # 8-bit results live in 32-bit registers and must arrive extended, so compare what the register holds.
            mask = (1 << register_bits(kind)) - 1
            why = mismatch(row, kind, want & mask, have & mask, case)
            if why:
                shown = ", ".join(show(k, v) for k, v in zip(row.ins, case))
                wrong.append(f"  {row.op}  with {shown}: {why}")
    assert not wrong, f"{len(wrong)} of {len(row.cases)} cases differ\n" + "\n".join(wrong[:8])


# ---- cases -------------------------------------------------------------------------------------


def integer_edges(kind):
    width = WIDTHS[kind]
    top = 1 << (width - 1)
    return [v & ((1 << width) - 1) for v in (0, 1, 2, 7, 31, top - 1, top, top + 1, -1, -2, 0x5A5A5A5A5A5A5A5A)]


def edges(kind):
    from exact_floats import edge_bits
    if kind in FORMATS:
        return edge_bits(FORMATS[kind])
    if kind.endswith("x2"):
        half = edge_bits(FORMATS[kind[:-2]])
        return [low | half[(i * 7 + 3) % len(half)] << 16 for i, low in enumerate(half)]
    return [0, 1] if kind == "pred" else integer_edges(kind)


def random_bits(kind, rng):
    if kind == "pred":
        return rng.randrange(2)
    if kind in ("f32", "f64", "bf16"):      # exponents near zero, so that sums and products stay interesting
        f = FORMATS[kind]
        exponent = rng.randrange(f.bias - 30, f.bias + 30)
        return rng.getrandbits(1) << (f.width - 1) | exponent << f.mantissa_bits | rng.getrandbits(f.mantissa_bits)
    return rng.getrandbits(WIDTHS[kind])


def cases(*kinds, limit=224, extra=32, seed=1):
    """Edge values against edge values (thinned to `limit`), then random ones."""
    rng = Random(seed)
    every = list(product(*(edges(k) for k in kinds)))
    chosen = every if len(every) <= limit else rng.sample(every, limit)
    return tuple(chosen + [tuple(random_bits(k, rng) for k in kinds) for _ in range(extra)])


# ---- tolerances --------------------------------------------------------------------------------


def within(relative=0.0, absolute=0.0):
    """Finite results within a bound, specials exactly (zeros may differ in sign only if both tiny)."""

    def check(kind, expected, got, case):
        want, have = (decode(FORMATS[kind], b) for b in (expected, got))
        special = isnan_value(want) or isnan_value(have) or isinf_value(want) or isinf_value(have)
        if special:
            same = expected == got or (isnan_value(want) and isnan_value(have))
        else:
            same = abs(float(want) - float(have)) <= relative * abs(float(want)) + absolute
        return None if same else f"expected {show(kind, expected)} ±{relative}r ±{absolute}a, got {show(kind, got)}"

    return check


def either_zero(kind, expected, got, case):
    """Whether .relu takes -0 for negative is not written down; everything else has to be exact."""
    for (half, want), (_, have) in zip(lanes(kind, expected), lanes(kind, got)):
        same = want == have or (want == 0 and have == 1 << (WIDTHS[half] - 1)) or (nan_bits(half, want) and nan_bits(half, have))
        if not same:
            return f"expected {show(half, want)}, got {show(half, have)}"
    return None


def isinf_value(value):
    return isinstance(value, float) and isinf(value)
