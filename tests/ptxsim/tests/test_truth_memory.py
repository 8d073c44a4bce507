"""Loads, stores and copies of every width, vector, space and cache operator: PTX ISA 9.7.9.8 to 9.7.9.25."""

import numpy as np
import ptxsim
import pytest
from test_truth_int import value
from truth import WIDTHS, Row, cases, check_row, module_text, register_bits

SCALARS = ("u8", "s8", "b8", "u16", "s16", "b16", "u32", "s32", "b32", "u64", "s64", "b64", "f32", "f64")
VECTORS = {"v2": ("b8", "b16", "b32", "b64", "f32", "f64"), "v4": ("b8", "b16", "b32", "f32")}
LOAD_OPERATORS = ("ca", "cg", "cs", "lu", "cv", "nc", "ca.nc", "cg.nc", "nc.L1::no_allocate", "nc.L2::128B", "L1::evict_last",
                  "L1::evict_first", "L1::no_allocate", "L2::64B", "L2::128B", "L2::256B", "nc.L1::no_allocate.L2::256B")
STORE_OPERATORS = ("wb", "cg", "cs", "wt", "L1::evict_last", "L1::no_allocate")
SHARED = ".shared .align 16 .b8 room[1024]; mov.u32 %i, %tid.x; mov.u32 %n, room; mad.lo.u32 %i, %i, 16, %n;"
LOCAL = ".local .align 16 .b8 room[16]; mov.u64 %x, room;"
PAIR = cases("b64", "b64", limit=60)


def lanes_of(vector, kind):
    return int(vector[1]) if vector else 1


def pieces(kind, count, a, b):
    """The `count` elements of type kind at the front of the 16 bytes (a, b)."""
    joined, width = a | b << 64, WIDTHS[kind]
    return [joined >> width * i & ((1 << width) - 1) for i in range(count)]


def pack(kind, values, extend=True):
    """Registers (extended elements) packed side by side into two 64-bit words."""
    width = register_bits(kind)
    joined = sum((value(kind, v) & ((1 << width) - 1)) << width * i for i, v in enumerate(values))
    return joined & (1 << 64) - 1, joined >> 64


def braces(names):
    return "{" + ", ".join(names) + "}" if len(names) > 1 else names[0]


def packing(kind, names):
    """PTX that packs element registers into %d and %e, and the reverse."""
    width = register_bits(kind)
    per_word = 64 // width
    moves = []
    for word, out in enumerate(("%d", "%e")):
        group = names[word * per_word:(word + 1) * per_word]
        group = group + ["%z"] * (per_word - len(group)) if group else []
        moves.append(f"mov.b64 {out}, {braces(group)};" if group else f"mov.b64 {out}, 0;")
    return f".reg .b{width} %z; mov.b{width} %z, 0; " + " ".join(moves)


def load_row(space, address, prelude, operator, vector, kind):
    """The 16 bytes of a case are put where `address` points, loaded as the type, and shown as registers."""
    count = lanes_of(vector, kind)
    names = [f"%r{i}" for i in range(count)]
    load = ".".join(part for part in ("ld", space, operator, vector, kind) if part)
    op = (f"{{ .reg .b64 %x; .reg .b{register_bits(kind)} %r<{count}>; {prelude} {load} {braces(names)}, [{address}]; "
          f"{packing(kind, names)} }}")
    return Row(op, ("b64", "b64"), ("b64", "b64"), lambda a, b: pack(kind, pieces(kind, count, a, b)), PAIR, note=load)


def load_rows():
    everything = [("", k) for k in SCALARS] + [(v, k) for v, kinds in VECTORS.items() for k in kinds]
    fill_shared = SHARED + " st.shared.v2.b64 [%i], {%a, %b};"
    fill_local = LOCAL + " st.local.v2.b64 [%x], {%a, %b};"
    for vector, kind in everything:
        yield load_row("global", "%row", "", "", vector, kind)
        yield load_row("", "%row", "", "", vector, kind)
        yield load_row("shared", "%i", fill_shared, "", vector, kind)
        yield load_row("local", "%x", fill_local, "", vector, kind)
    for operator in LOAD_OPERATORS:
        for vector, kind in (("", "b32"), ("v4", "b32"), ("v2", "b64"), ("", "u8")):
            if operator != "lu":
                yield load_row("global", "%row", "", operator, vector, kind)
    for spelling in ("volatile.global", "relaxed.gpu.global", "relaxed.sys.global", "acquire.gpu.global", "acquire.cta.global"):
        yield load_row(spelling, "%row", "", "", "", "b32")
    yield load_row("volatile.shared", "%i", fill_shared, "", "v2", "b32")


def store_row(space, address, back, prelude, operator, vector, kind):
    """16 bytes are zeroed where `address` points, stored to, and read back."""
    count, width = lanes_of(vector, kind), register_bits(kind)
    names = [f"%r{i}" for i in range(count)]
    store = ".".join(part for part in ("st", space, operator, vector, kind) if part)
    unpack = " ".join(f"shr.u64 %y, %{'ab'[i * WIDTHS[kind] // 64]}, {i * WIDTHS[kind] % 64}; {to_register(name, width)}"
                      for i, name in enumerate(names))
    op = (f"{{ .reg .b64 %x, %y; .reg .b{width} %r<{count}>; {prelude} mov.b64 %y, 0; st.{back}.v2.b64 [{address}], {{%y, %y}}; "
          f"{unpack} {store} [{address}], {braces(names)}; ld.{back}.v2.b64 {{%d, %e}}, [{address}]; }}")

    def oracle(a, b):
        bits = WIDTHS[kind] * count
        joined = (a | b << 64) & ((1 << bits) - 1)
        return joined & (1 << 64) - 1, joined >> 64

    return Row(op, ("b64", "b64"), ("b64", "b64"), oracle, PAIR, note=store)


def to_register(name, width):
    return f"mov.b64 {name}, %y;" if width == 64 else f"cvt.u{width}.u64 {name}, %y;"


def store_rows():
    everything = [("", k) for k in SCALARS] + [(v, k) for v, kinds in VECTORS.items() for k in kinds]
    for vector, kind in everything:
        yield store_row("global", "%dst", "global", "", "", vector, kind)
        yield store_row("", "%dst", "global", "", "", vector, kind)
        yield store_row("shared", "%i", "shared", SHARED, "", vector, kind)
        yield store_row("local", "%x", "local", LOCAL, "", vector, kind)
    for operator in STORE_OPERATORS:
        for vector, kind in (("", "b32"), ("v4", "b32"), ("v2", "b64"), ("", "u8")):
            yield store_row("global", "%dst", "global", "", operator, vector, kind)
    for spelling in ("volatile.global", "relaxed.gpu.global", "release.gpu.global", "release.sys.global"):
        yield store_row(spelling, "%dst", "global", "", "", "", "b32")


def copy_rows():
    """cp.async: `size` bytes, of which the first src-size come from memory and the rest are zeros."""
    zero = SHARED + " mov.b64 %y, -1; st.shared.v2.b64 [%i], {%y, %y};"
    done = " cp.async.commit_group; cp.async.wait_group 0; ld.shared.v2.b64 {%d, %e}, [%i]; }"
    forms = [("ca", size, "") for size in (4, 8, 16)] + [("cg", 16, "")]
    forms += [("ca", 4, ".L2::128B"), ("cg", 16, ".L2::64B"), ("cg", 16, ".L2::256B")]
    for operator, size, hint in forms:
        for source in (None, 0, 1, 3, 4, 8, 13, 16):
            if source is None or source <= size:
                amount = "" if source is None else f", {source}"
                op = (f"{{ .reg .b64 %y; {zero} cp.async.{operator}.shared.global{hint} [%i], [%row], {size}{amount};" + done)
                yield Row(op, ("b64", "b64"), ("b64", "b64"), copied(size, size if source is None else source), PAIR,
                          note=f"cp.async.{operator}{hint} {size} {source}")
    body = f"{{ .reg .b64 %y; .reg .b32 %s; {zero} and.b32 %s, %i, 16; cp.async.cg.shared.global [%i], [%row], 16, %s;" + done
    yield Row(body, ("b64", "b64"), ("b64", "b64"), None, PAIR, note="cp.async by lane")
    body = f"{{ .reg .b64 %y; {zero} setp.eq.u32 %p, 0, 0; cp.async.ca.shared.global [%i], [%row], 8, %p;" + done
    yield Row(body, ("b64", "b64"), ("b64", "b64"), copied(8, 0), PAIR, note="cp.async ignore-src")
    body = f"{{ .reg .b64 %y; {zero} cp.async.ca.shared.global [%i], [%row], 16; cp.async.wait_all; ld.shared.v2.b64 {{%d, %e}}, [%i]; }}"
    yield Row(body, ("b64", "b64"), ("b64", "b64"), copied(16, 16), PAIR, note="cp.async.wait_all")


def copied(size, source):
    ones = (1 << 128) - 1

    def oracle(a, b):
        joined = (ones >> 8 * size << 8 * size) | ((a | b << 64) & ((1 << 8 * source) - 1))
        return joined & (1 << 64) - 1, joined >> 64

    return oracle


def hint_rows():
    """Policies, prefetches and fences change no value."""
    policies = ["createpolicy.fractional.L2::evict_last.b64 %x, 1.0;", "createpolicy.fractional.L2::evict_first.b64 %x;",
                "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %x, 0.5;",
                "createpolicy.range.global.L2::evict_last.b64 %x, [%row], 128, 256;"]
    for policy in policies:
        op = (f"{{ .reg .b64 %x; {policy} ld.global.L2::cache_hint.b32 %d, [%row], %x; "
              "st.global.L2::cache_hint.b32 [%dst], %d, %x; }")
        yield Row(op, ("b32",), ("b32",), lambda a: a, cases("b32"), note=policy.split()[0])
    op = "{ .reg .b64 %x; createpolicy.fractional.L2::evict_first.b64 %x, 1.0; ld.global.nc.L2::cache_hint.b32 %d, [%row], %x; }"
    yield Row(op, ("b32",), ("b32",), lambda a: a, cases("b32"), note="hint_nc")
    for line in ("prefetch.global.L1 [%row];", "prefetch.global.L2 [%row];", "prefetch.L2 [%row];", "prefetchu.L1 [%row];",
                 "prefetch.global.L2::evict_last [%row];", "membar.cta;", "membar.gl;", "membar.sys;", "fence.acq_rel.cta;",
                 "fence.acq_rel.gpu;", "fence.sc.gpu;", "fence.sc.sys;", "nanosleep.u32 20;", "bar.warp.sync 0xffffffff;",
                 "griddepcontrol.wait;", "applypriority.global.L2::evict_normal [%k64], 128;", "pragma"):
        if line == "pragma":
            line = '.pragma "nounroll";'
        if "k64" in line:
            line = "{ .reg .b64 %k64; and.b64 %k64, %row, -128; " + line + " }"
        yield Row(line + " mov.b32 %d, %a;", ("b32",), ("b32",), lambda a: a, cases("b32"),
                  "sm_90" if "griddep" in line else "sm_80", note=line.split(";")[0].split(" [")[0])


def address_rows():
    """Generic addresses, offsets, isspacep."""
    yield Row(f"{{ .reg .b64 %x; {SHARED} st.shared.b64 [%i], %a; cvt.u64.u32 %x, %i; cvta.shared.u64 %x, %x; ld.b64 %d, [%x]; }}",
              ("b64",), ("b64",), lambda a: a, cases("b64"), note="cvta.shared")
    yield Row(f"{{ .reg .b64 %x; {SHARED} cvt.u64.u32 %x, %i; cvta.shared.u64 %x, %x; st.b64 [%x], %a; "
              "cvta.to.shared.u64 %x, %x; cvt.u32.u64 %n, %x; ld.shared.b64 %d, [%n]; }", ("b64",), ("b64",), lambda a: a,
              cases("b64"), note="cvta.to.shared")
    yield Row(f"{{ .reg .b64 %x, %y; {LOCAL} cvta.local.u64 %y, %x; st.b64 [%y], %a; ld.local.b64 %d, [%x]; }}",
              ("b64",), ("b64",), lambda a: a, cases("b64"), note="cvta.local")
    yield Row("{ .reg .b64 %x; cvta.to.global.u64 %x, %row; ld.global.b64 %d, [%x]; cvta.global.u64 %x, %x; ld.b64 %e, [%x+8]; }",
              ("b64", "b64"), ("b64", "b64"), lambda a, b: (a, b), cases("b64", "b64"), note="cvta.global")
    yield Row("{ .reg .b64 %x; add.s64 %x, %row, 4096; ld.global.b64 %d, [%x+-4096]; ld.global.b64 %e, [%x+-4088]; }",
              ("b64", "b64"), ("b64", "b64"), lambda a, b: (a, b), cases("b64", "b64"), note="negative_offset")
    for space, inside in (("global", (1, 0)), ("shared", (0, 1)), ("local", (0, 0))):
        op = (f"{{ .reg .b64 %x; {SHARED} cvt.u64.u32 %x, %i; cvta.shared.u64 %x, %x; isspacep.{space} %d, %row; "
              f"isspacep.{space} %e, %x; }}")
        yield Row(op, ("b32",), ("pred", "pred"), lambda a, inside=inside: inside, cases("b32", limit=4, extra=0), note=space)


ROWS = [*load_rows(), *store_rows(), *copy_rows(), *hint_rows(), *address_rows()]


@pytest.mark.parametrize("row", [r for r in ROWS if r.oracle], ids=lambda r: r.note or r.id)
def test_memory(row):
    check_row(row)


def test_cp_async_takes_its_size_from_each_lane():
    from truth import run_row
    row = next(r for r in ROWS if r.note == "cp.async by lane")
    for (a, b), (d, e) in zip(row.cases, run_row(row)):
        assert (d, e) in ((a, b), (0, 0))
    assert {(d, e) == (0, 0) for d, e in run_row(row)} == {True, False}


PARAMETERS = """
.const .align 8 .b32 table[4] = {11, 22, 33, 44};
.global .align 8 .u64 counter = 7;
.global .align 4 .f32 scale[2] = {0f3F800000, 0f40490FDB};
.visible .entry k(.param .align 8 .b8 s[24], .param .u64 out, .param .u8 byte, .param .f32 x, .param .u16 h)
{
  .reg .b64 %p, %q, %c; .reg .b32 %r<8>; .reg .b16 %h; .reg .f32 %f<3>; .reg .f64 %g;
  ld.param.u64 %p, [out];
  ld.param.u64 %q, [s];       st.global.u64 [%p], %q;
  ld.param.s32 %r0, [s+8];    st.global.u32 [%p+8], %r0;
  ld.param.s8 %r1, [s+12];    st.global.u32 [%p+12], %r1;
  ld.param.f64 %g, [s+16];    st.global.f64 [%p+16], %g;
  ld.param.u8 %r2, [byte];    st.global.u32 [%p+24], %r2;
  ld.param.f32 %f0, [x];      st.global.f32 [%p+28], %f0;
  ld.param.u16 %h, [h];       cvt.u32.u16 %r3, %h; st.global.u32 [%p+32], %r3;
  ld.const.b32 %r4, [table+8]; st.global.u32 [%p+36], %r4;
  ld.global.u64 %c, [counter]; st.global.u64 [%p+40], %c;
  ld.global.f32 %f1, [scale+4]; st.global.f32 [%p+48], %f1;
  mov.u64 %c, table; ld.const.v2.b32 {%r5, %r6}, [%c]; st.global.u32 [%p+52], %r6;
  ret;
}
"""


def test_parameters_constants_and_module_variables(device):
    kernel = ptxsim.load_ptx(module_text("sm_80", [PARAMETERS])).kernel("k")
    out = device.tensor(np.zeros(56, np.uint8), name="out")
    struct = np.array([0x123456789ABCDEF0], np.uint64).tobytes() + np.array([-5], np.int32).tobytes() + b"\xfe\0\0\0"
    struct += np.array([2.5], np.float64).tobytes()
    device.launch(kernel, 1, 1, [struct, out, np.uint8(200), np.float32(1.5), np.uint16(65535)])
    got = out.numpy()
    assert got[:8].view(np.uint64)[0] == 0x123456789ABCDEF0
    assert got[8:16].view(np.int32).tolist() == [-5, -2]
    assert got[16:24].view(np.float64)[0] == 2.5
    assert got[24:28].view(np.uint32)[0] == 200 and got[28:32].view(np.float32)[0] == 1.5
    assert got[32:40].view(np.uint32).tolist() == [65535, 33]
    assert got[40:48].view(np.uint64)[0] == 7
    assert got[48:52].view(np.uint32)[0] == 0x40490FDB and got[52:56].view(np.uint32)[0] == 22
