"""wmma.load, wmma.mma and wmma.store: PTX ISA 9.7.14.4. Which lane holds which element is open, so only whole matrices can be compared."""

import functools
import subprocess
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import ptxsim
import pytest
from fragments import CODECS
from truth import module_text

SIZES = {"f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "f64": 8, "s8": 1, "u8": 1, "s32": 4}
STORAGE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
WHOLE = ((16, 16, 16), (32, 8, 16), (8, 32, 16))


@dataclass(frozen=True)
class Wmma:
    shape: tuple
    a: str
    c: str
    d: str
    layouts: tuple = ("row", "col", "row", "row")    # of a, b, c and d in memory
    pad: int = 0    # elements between the lines of a matrix beyond its own; 0 uses the default stride
    more: str = ""

    @property
    def id(self):
        order = "".join(layout[0] for layout in self.layouts)
        return self.dims + f"-{self.d}-{self.a}-{self.c}-{order}-{self.pad}{self.more}"

    @property
    def dims(self):
        return "m{}n{}k{}".format(*self.shape)

    def kind(self, name):
        return {"a": self.a, "b": self.a, "c": self.c, "d": self.d}[name]

    def layout(self, name):
        return self.layouts["abcd".index(name)]

    def extent(self, name):
        m, n, k = self.shape
        return {"a": (m, k), "b": (k, n)}.get(name, (m, n))

    def registers(self, name):
        rows, cols = self.extent(name)
        if name in "ab" and self.a == "f16":
            return 8
        return rows * cols // 32 * SIZES[self.kind(name)] // (8 if self.kind(name) == "f64" else 4)

    def line(self, name):
        rows, cols = self.extent(name)
        return (cols if self.layout(name) == "row" else rows) + self.pad

    @property
    def opcode(self):
        types = f"{self.d}.{self.c}" if self.a == "f16" else f"{self.d}.{self.a}.{self.a}.{self.c}"
        return "wmma.mma.sync.aligned.{}.{}.".format(*self.layouts[:2]) + f"{self.dims}.{types}{self.more}"

    def braces(self, name):
        return "{" + ", ".join(f"%{name}{i}" for i in range(self.registers(name))) + "}"

    def access(self, operation, name):
        """wmma.load or wmma.store of one matrix at %p<name>."""
        stride = f", {self.line(name)}" if self.pad else ""
        head = f"wmma.{operation}.{name}.sync.aligned.{self.layout(name)}.{self.dims}.global.{self.kind(name)}"
        fragment, place = self.braces(name), f"[%p{name}]"
        return f"{head} {place}, {fragment}{stride};" if operation == "store" else f"{head} {fragment}, {place}{stride};"

    def declare(self, names):
        lines = [f"  .reg .b64 {', '.join('%p' + n for n in names)};"]
        for n in names:
            width = 64 if self.kind(n) == "f64" else 32
            lines.append(f"  .reg .b{width} %{n}<{self.registers(n)}>; ld.param.u64 %p{n}, [p{n}];")
        return "\n".join(lines)


def entry(spec, body, name="k", names="abcd"):
    params = ", ".join(f".param .u64 p{n}" for n in names)
    return f".visible .entry {name}({params})\n{{\n{spec.declare(names)}\n{body}\n  ret;\n}}\n"


def multiply_text(spec, name="k", change=""):
    loads = "\n".join("  " + spec.access("load", n) for n in "abc")
    a, b, c, d = (spec.braces(n) for n in "abcd")
    return entry(spec, f"{loads}\n{change}\n  {spec.opcode} {d}, {a}, {b}, {c};\n  {spec.access('store', 'd')}", name)


def in_memory(spec, name, matrix):
    """The matrix in its layout, as bits; what lies between the lines is a number that would spoil everything."""
    bits, coded, _ = CODECS[spec.kind(name)]
    lines = np.asarray(matrix) if spec.layout(name) == "row" else np.asarray(matrix).T
    out = np.full((lines.shape[0], spec.line(name)), (1 << bits - 2) + 3, STORAGE[bits // 8])
    out[:, :lines.shape[1]] = [[coded(x) for x in line] for line in lines]
    return out


def from_memory(spec, name, memory):
    _, _, decoded = CODECS[spec.kind(name)]
    rows, cols = spec.extent(name)
    lines = np.array([[decoded(int(x)) for x in line] for line in memory])
    return lines[:, :cols] if spec.layout(name) == "row" else lines[:, :rows].T


def program(text):
    kernel = ptxsim.load_ptx(module_text("sm_80", [text])).kernel("k")
    kernel.program.registers = 16
    return kernel


def run(spec, a, b, c, seed=0, change="", poison=()):
    """D, through the engine; of the matrices in `poison` one element was never written: (name, line, place)."""
    dev = ptxsim.Device(profile="sm_80", seed=seed, threads=1)
    memory = {n: in_memory(spec, n, x) for n, x in (("a", a), ("b", b), ("c", c))}
    tensors = {n: dev.tensor(x, n) for n, x in memory.items()}
    for name, line, place in poison:
        bits = memory[name]
        tensors[name] = dev.empty(bits.shape, bits.dtype, name)
        flat, hole = bits.tobytes(), (line * bits.shape[1] + place) * bits.itemsize
        tensors[name].write(0, flat[:hole])
        tensors[name].write(hole + bits.itemsize, flat[hole + bits.itemsize:])
    rows = spec.extent("d")[0 if spec.layout("d") == "row" else 1]
    d = dev.empty((rows, spec.line("d")), STORAGE[SIZES[spec.d]], "d")
    dev.launch(program(multiply_text(spec, change=change)), 1, 32, [*tensors.values(), d])
    unwritten = d.undefined().reshape(rows, spec.line("d"), -1).all(-1)
    assert unwritten[:, spec.line("d") - spec.pad:].all() and not unwritten[:, :spec.line("d") - spec.pad].any()
    return from_memory(spec, "d", d.numpy())


FLOATS = [Wmma(s, "f16", c, d) for s in WHOLE for c in ("f16", "f32") for d in ("f16", "f32")]
FLOATS += [Wmma(s, "bf16", "f32", "f32") for s in WHOLE]
FLOATS += [Wmma((16, 16, 8), "tf32", "f32", "f32"), Wmma((8, 8, 4), "f64", "f64", "f64")]
BYTES = [Wmma(s, kind, "s32", "s32") for s in WHOLE for kind in ("s8", "u8")]
LAYOUTS = [Wmma(s.shape, s.a, s.c, s.d, layouts, pad) for s in (FLOATS[3], FLOATS[7], *FLOATS[-3:], *BYTES[2:4])
           for layouts, pad in zip(product(("row", "col"), repeat=4), (0, 16, 32, 16) * 4)]
SPECS = FLOATS + BYTES + LAYOUTS
BY_SPEC = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.id)


@functools.cache
def problem(spec):
    rng = np.random.default_rng(len(spec.id))
    low = 0 if spec.a == "u8" else -8
    return tuple(rng.integers(low, 9, spec.extent(n)) for n in "ab") + (rng.integers(-99, 100, spec.extent("c")),)


@BY_SPEC
def test_the_product_is_exact(spec):
    a, b, c = problem(spec)
    for seed in range(3):
        assert np.array_equal(run(spec, a, b, c, seed), a @ b + c)


def scaled(spec, name):
    """Every element of a fragment in registers of single floats times two: an operation on all elements alike."""
    return "\n".join(f"  add.f32 %{name}{i}, %{name}{i}, %{name}{i};" for i in range(spec.registers(name)))


def test_an_operation_on_all_elements_alike_is_defined():
    a, b, c = problem(FLOATS[3])
    for seed in range(8):
        assert np.array_equal(run(FLOATS[3], a, b, c, seed, scaled(FLOATS[3], "c")), a @ b + 2 * c)


def test_where_an_element_lies_depends_on_the_seed():
    """A kernel that believes lane 0's first element to be the corner is right for some seeds only."""
    a, b, c = (np.zeros(FLOATS[3].extent(n)) for n in "abc")
    change = "  .reg .pred %q; .reg .b32 %t; mov.u32 %t, %tid.x; setp.eq.u32 %q, %t, 0; @%q mov.b32 %c0, 0f3F800000;"
    places = set()
    for seed in range(12):
        d = run(FLOATS[3], a, b, c, seed, change)
        assert (d == 1).sum() == 1 and (d == 0).sum() == d.size - 1
        places.add(int(d.argmax()))
    assert len(places) > 6


def test_copies_of_an_element_that_differ_are_undefined():
    """Fragments of f16 hold each element twice; changing one copy leaves the product open."""
    a, b, c = problem(FLOATS[3])
    change = "  .reg .pred %q; .reg .b32 %t; mov.u32 %t, %tid.x; setp.eq.u32 %q, %t, 3; @%q mov.b32 %a0, 0;"
    with pytest.raises(ptxsim.Undefined, match="Lanes hold different values of the wmma fragment's element at row"):
        run(FLOATS[3], a + 9, b, c, 0, change)


# ---- arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [s for s in FLOATS if s.a in ("f16", "bf16") and s.d == s.c == "f32"], ids=lambda s: s.id)
def test_products_are_not_rounded_before_the_sum(spec):
    """(1+u)² - 1 - 2u = u² survives only if the products are exact and summed in f32 at least."""
    u = 2.0**-7 if spec.a == "bf16" else 2.0**-10
    a, b, c = np.zeros(spec.extent("a")), np.zeros(spec.extent("b")), np.full(spec.extent("c"), -1.0)
    a[:, 0], b[0, :] = 1 + u, 1 + u
    a[:, 3], b[3, :] = -2 * u, 1
    assert np.array_equal(run(spec, a, b, c), np.full(c.shape, u * u))


@pytest.mark.parametrize("shape", WHOLE)
def test_a_half_accumulator_is_rounded_once(shape):
    """2048 + 1 + 1 is 2048 if each sum is rounded to a half, and 2050 if only the last is."""
    spec = Wmma(shape, "f16", "f16", "f16")
    a, b, c = np.zeros(spec.extent("a")), np.ones(spec.extent("b")), np.full(spec.extent("c"), 2048.0)
    a[:, 1] = a[:, 7] = 1
    assert (run(spec, a, b, c) == 2050).all()


@pytest.mark.parametrize("more, expected", [("", 127 * 127 * 16 - 2**31 - 1), (".satfinite", 2**31 - 1)], ids=["wraps", "clamps"])
def test_integers_saturate_only_when_told(more, expected):
    spec = Wmma((16, 16, 16), "s8", "s32", "s32", more=more)
    a, b, c = (np.full(spec.extent(n), v) for n, v in (("a", 127), ("b", 127), ("c", 2**31 - 1)))
    assert (run(spec, a, b, c) == expected).all()


def test_the_low_bits_of_tf32_are_ignored():
    spec = Wmma((16, 16, 8), "tf32", "f32", "f32")
    a, b, c = np.ones(spec.extent("a")) + 2.0**-20, np.ones(spec.extent("b")), np.zeros(spec.extent("c"))
    assert (run(spec, a, b, c) == 8).all()


@pytest.mark.parametrize("spec", FLOATS, ids=lambda s: s.id)
def test_nan_reaches_only_its_row(spec):
    a, b, c = np.ones(spec.extent("a")), np.ones(spec.extent("b")), np.zeros(spec.extent("c"))
    a[3, 2] = np.inf
    b[2, :] = 0    # inf × 0
    d = run(spec, a, b, c)
    assert np.isnan(d[3]).all() and not np.isnan(np.delete(d, 3, 0)).any()


# ---- what is wrong with a program --------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("spec", [FLOATS[3], FLOATS[8], FLOATS[-2], FLOATS[-1], BYTES[0]], ids=lambda s: s.id)
def test_an_undefined_element_spoils_what_it_reaches(spec, name):
    with pytest.raises(ptxsim.Undefined, match="stored to global memory"):
        run(spec, *problem(spec), poison=[(name, 2, 1)])


TWIN = """.visible .entry k(.param .u64 pa, .param .u64 pd)
{{
  .reg .b64 %pa, %pd, %t64; .reg .b32 %c<8>, %t, %s; .reg .pred %q;
  .shared .align 32 .b8 room[1280];
  ld.param.u64 %pa, [pa]; ld.param.u64 %pd, [pd]; mov.u32 %t, %tid.x; mov.u32 %s, 16;
  {body}
  ret;
}}
"""
C = "{%c0, %c1, %c2, %c3, %c4, %c5, %c6, %c7}"
LOAD = "wmma.load.c.sync.aligned.row.m16n16k16.global.f32 " + C + ", [%pa], %s;"
STORE = "wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%pd], " + C + ";"


def through_shared(between, address="%s", space=".shared"):
    """Stored as rows of 20, loaded as columns."""
    store = f"wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%s], {C}, 20;"
    load = f"wmma.load.c.sync.aligned.col.m16n16k16{space}.f32 {C}, [{address}], 20;"
    return " ".join(["mov.u32 %s, room;", LOAD.replace("%s", "16"), store, between, load, STORE])


def run_twin(body, seed=0, threads=32, profile="sm_80", rows=16):
    dev = ptxsim.Device(profile=profile, seed=seed)
    x = np.arange(rows * 16, dtype=np.float32).reshape(rows, 16)
    d = dev.empty((16, 16), np.float32, "d")
    dev.launch(program(TWIN.format(body=body)), 1, threads, [dev.tensor(x, "x"), d])
    return x, d.numpy()


def test_through_shared_memory_and_transposed():
    for seed in range(4):
        x, d = run_twin(through_shared("bar.warp.sync 0xffffffff;"), seed)
        assert np.array_equal(d, x.T)


def test_generic_addresses():
    x, d = run_twin(through_shared("cvt.u64.u32 %t64, %s; cvta.shared.u64 %t64, %t64; bar.warp.sync 0xffffffff;", "%t64", ""))
    assert np.array_equal(d, x.T)


def test_the_lanes_of_a_warp_race_without_a_sync():
    with pytest.raises(ptxsim.Race):
        run_twin(through_shared(""))


WRONG = {
    "misaligned": ("add.u64 %pa, %pa, 16; " + LOAD, ptxsim.Misaligned, "wmma matrix"),
    "odd_stride": ("mov.u32 %s, 18; " + LOAD, ptxsim.Misaligned, "stride of a wmma matrix"),
    "too_short": ("mov.u32 %s, 20; " + LOAD, ptxsim.OutOfBounds, "tensor x"),
    "lanes_differ": ("and.b32 %t, %t, 4; add.u32 %s, %s, %t; " + LOAD, ptxsim.Divergence, "different strides"),
    "addresses_differ": ("mul.wide.u32 %t64, %t, 32; add.u64 %pa, %pa, %t64; " + LOAD, ptxsim.Divergence, "different addresses"),
    "half_a_warp": ("setp.lt.u32 %q, %t, 16; @%q " + LOAD, ptxsim.Divergence, "Only part of the warp"),
    "local_memory": ("cvt.u64.u32 %t64, %t; mov.u64 %pa, 0x0200000000000000; " + LOAD.replace(".global", ""), ptxsim.OutOfBounds,
                     "neither in global nor in shared"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_programs(case):
    body, error, why = WRONG[case]
    with pytest.raises(error, match=why) as caught:
        run_twin(body + " " + STORE)
    assert "wmma.load.c" in str(caught.value)


def test_a_warp_that_is_not_whole():
    with pytest.raises(ptxsim.Divergence, match="warp-wide matrix instruction"):
        run_twin(LOAD + " " + STORE, threads=16)


def test_the_work_is_counted():
    dev = ptxsim.Device(profile="sm_80")
    tensors = [dev.tensor(in_memory(FLOATS[3], n, np.ones(FLOATS[3].extent(n))), n) for n in "abc"]
    d = dev.empty((16, 16), np.float32, "d")
    counters = dev.launch(program(multiply_text(FLOATS[3])), 1, 32, [*tensors, d])
    assert counters["mma_flop"] == 2 * 16**3 and counters["global_sectors"] == (512 + 512 + 1024 + 1024) // 32


UNKNOWN = ["wmma.mma.sync.aligned.row.col.m8n8k32.s32.s4.s4.s32 {%c0, %c1}, {%c2}, {%c3}, {%c0, %c1};",
           "wmma.mma.xor.popc.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32 {%c0, %c1}, {%c2}, {%c3}, {%c0, %c1};",
           "mma.sp::ordered_metadata.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c0, %c1, %c2, %c3}, {%c4, %c5}, {%c6, %c7}, "
           "{%c0, %c1, %c2, %c3}, %t, 0x0;",
           "mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%c0, %c1}, {%c2}, {%c3}, {%c0, %c1};",
           "alloca.u64 %t64, %pa, 16;", "vabsdiff4.u32.u32.u32.add %t, %t, %s, %t;", "vadd.s32.s32.s32 %t, %t, %s;"]


@pytest.mark.parametrize("instruction", UNKNOWN, ids=lambda i: i.split()[0])
def test_what_is_not_known_stops_with_its_own_text(instruction):
    fill = " ".join(f"mov.b32 %c{i}, 0;" for i in range(8))
    with pytest.raises(ptxsim.Unsupported, match="This instruction is not supported") as caught:
        run_twin(fill + "\n  " + instruction)
    assert f"`{instruction}`" in str(caught.value)


def test_ptxas_accepts_the_texts(nvcc, tmp_path):
    specs = [*SPECS, Wmma((16, 16, 16), "s8", "s32", "s32", more=".satfinite")]
    texts = [multiply_text(s, f"k{i}") for i, s in enumerate(specs)]
    twins = [through_shared("bar.warp.sync 0xffffffff;"), *(body for body, _, _ in WRONG.values()), *UNKNOWN]
    texts += [TWIN.format(body=body).replace("entry k(", f"entry twin{i}(") for i, body in enumerate(twins)]
    (tmp_path / "m.ptx").write_text(module_text("sm_80", texts))
    command = [str(Path(nvcc).with_name("ptxas")), "-O0", "-arch", "sm_80", str(tmp_path / "m.ptx"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- nvcuda::wmma, compiled --------------------------------------------------------------------

BF16 = "bf16"
GEMMS = {"gemm_f16": (16, 16, np.float16, np.float32), "gemm_f16_wide": (8, 32, np.float16, np.float32),
         "gemm_f16_tall": (32, 8, np.float16, np.float16), "gemm_bf16": (16, 16, BF16, np.float32),
         "gemm_tf32": (16, 16, np.float32, np.float32), "gemm_s8": (16, 16, np.int8, np.int32),
         "gemm_f64": (8, 8, np.float64, np.float64)}


@pytest.mark.parametrize("name", GEMMS)
def test_a_gemm_of_the_cuda_headers(compile_case, name):
    m, n, kind, sums = GEMMS[name]
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 9, shape) for shape in ((2 * m, 48), (48, 2 * n), (2 * m, 2 * n)))
    stored = (lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)) if kind is BF16 else lambda x: x.astype(kind)
    for seed in range(3):
        dev = ptxsim.Device(profile="sm_80", seed=seed)
        d = dev.empty((2 * m, 2 * n), sums, "d")
        arguments = [dev.tensor(stored(a), "a"), dev.tensor(stored(np.ascontiguousarray(b.T)), "b"), dev.tensor(c.astype(sums), "c"), d]
        dev.launch(compile_case("wmma").kernel(name), (2, 2), 32, [*arguments, np.int32(2 * n), np.int32(48)])
        assert np.array_equal(d.numpy(), 2 * (a @ b) + c)
