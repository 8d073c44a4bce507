"""Hand-written wgmma kernels, and index functions that say where a matrix lies: in shared memory and in registers.

A kernel copies an image of shared memory from global memory, multiplies once and stores the accumulators as they are.
"""

from fractions import Fraction

import numpy as np
from exact_floats import FORMATS, encode

DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
BYTES = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}
WIDTHS = {"none": (16, 0), "128": (128, 1), "64": (64, 2), "32": (32, 3)}  # bytes of a row, the descriptor's bits 62-63


def fragment_row_column(thread, element):
    """PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16": of accumulators."""
    warp, lane = thread // 32, thread % 32
    return 16 * warp + lane // 4 + 8 * (element // 2 % 2), 8 * (element // 4) + 2 * (lane % 4) + element % 2


def a_register_row_column(thread, register, within, per_register):
    """The same of A: four registers, rows down first."""
    warp, lane = thread // 32, thread % 32
    return 16 * warp + lane // 4 + 8 * (register % 2), lane % 4 * per_register + within + 4 * per_register * (register // 2)


def address(start, mode, major, x, k, leading, stride, element_bytes):
    """The byte of element (x, k), x along M or N: the canonical layouts, written with divisions only."""
    width = WIDTHS[mode][0]
    byte = (k if major == "k" else x) * element_bytes
    if major == "k":
        chunk, rest = byte // 16, byte % 16
        at = start + x // 8 * stride + x % 8 * width + rest + chunk * (leading if mode == "none" else 16)
    else:
        outer, rest = byte // width, byte % width
        steps = (stride, leading) if mode == "none" else (leading, stride)
        at = start + outer * steps[0] + rest + k % 8 * width + k // 8 * steps[1]
    rows, chunks = at // 128, width // 16  # exchange chunks of a row by the row's number
    return at // width * width + (at % width // 16 ^ rows % chunks) * 16 + at % 16


def descriptor(mode, leading, stride, base=0):
    return (leading // 16) << 16 | (stride // 16) << 32 | base << 49 | WIDTHS[mode][1] << 62


def kernel(instruction, d_registers, d_type, image_bytes, a=None, b=0, a_start=0, b_start=0, tail="", target="sm_90a",
           accumulate=True, after_store="fence.proxy.async.shared::cta;", fence="wgmma.fence.sync.aligned;",
           commit="wgmma.commit_group.sync.aligned;", wait="wgmma.wait_group.sync.aligned 0;"):
    """One product a CTA. `a` is A's descriptor without its start, or None: A comes in four registers a thread."""
    d = ", ".join(f"%d{i}" for i in range(d_registers))
    load = "\n".join(f"  ld.global.b32 %d{i}, [%c + {512 * i}];" for i in range(d_registers))
    store = "\n".join(f"  st.global.b32 [%o + {512 * i}], %d{i};" for i in range(d_registers))
    registers = "" if a is not None else "\n".join(f"  ld.global.b32 %a{i}, [%r + {512 * i}];" for i in range(4))
    first = "%da" if a is not None else "{%a0, %a1, %a2, %a3}"
    return f""".version 8.6
.target {target}
.address_size 64
.shared .align 1024 .b8 room[{image_bytes}];
.visible .entry k(.param .u64 image, .param .u64 a_registers, .param .u64 c, .param .u64 out) .maxntid 128, 1, 1
{{
  .reg .b64 %i, %r, %c, %o, %da, %db, %x; .reg .b32 %t, %n, %s, %y, %k, %v<4>, %d<{d_registers}>, %a<4>; .reg .pred %p, %go;
  ld.param.u64 %i, [image]; ld.param.u64 %r, [a_registers]; ld.param.u64 %c, [c]; ld.param.u64 %o, [out];
  mov.u32 %t, %tid.x; mov.u32 %n, %ctaid.x;
  mul.wide.u32 %x, %n, {image_bytes}; add.u64 %i, %i, %x; mul.wide.u32 %x, %t, 16; add.u64 %i, %i, %x;
  mul.wide.u32 %x, %n, 2048; add.u64 %r, %r, %x; mul.wide.u32 %x, %n, {512 * d_registers}; add.u64 %c, %c, %x; add.u64 %o, %o, %x;
  mul.wide.u32 %x, %t, 4; add.u64 %r, %r, %x; add.u64 %c, %c, %x; add.u64 %o, %o, %x;
  mov.u32 %s, room; mad.lo.u32 %y, %t, 16, %s; shl.b32 %k, %t, 4;
COPY:
  setp.ge.u32 %p, %k, {image_bytes}; @%p bra COPIED;
  ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%i]; st.shared.v4.b32 [%y], {{%v0, %v1, %v2, %v3}};
  add.u64 %i, %i, 2048; add.u32 %y, %y, 2048; add.u32 %k, %k, 2048; bra COPY;
COPIED:
  {after_store}
  bar.sync 0;
{load}
{registers}
  add.u32 %y, %s, {a_start}; shr.u32 %y, %y, 4; cvt.u64.u32 %da, %y; or.b64 %da, %da, {a or 0};
  add.u32 %y, %s, {b_start}; shr.u32 %y, %y, 4; cvt.u64.u32 %db, %y; or.b64 %db, %db, {b};
  setp.ne.u32 %go, {int(accumulate)}, 0;
  {fence}
  {instruction} {{{d}}}, {first}, %db, %go{tail};
  {commit}
  {wait}
{store}
  ret;
}}
"""


def instruction(n, d_type, a_type, b_type, satfinite=False):
    return (f"wgmma.mma_async.sync.aligned.m64n{n}k{DEPTH[a_type]}" + (".satfinite" if satfinite else "")
            + f".{d_type}.{a_type}.{b_type}")


def place(image, matrix_bits, start, mode, major, leading, stride):
    """Puts the elements' bits, [..., x, k], into images [..., bytes]."""
    size = matrix_bits.dtype.itemsize
    x, k = np.meshgrid(*(np.arange(s) for s in matrix_bits.shape[-2:]), indexing="ij")
    at = address(start, mode, major, x, k, leading, stride, size)
    raw = matrix_bits[..., None].view(np.uint8).reshape(*matrix_bits.shape, size)
    for byte in range(size):
        image[..., at + byte] = raw[..., byte]


def to_fragments(matrix_words, d_registers, per_register):
    """[..., 64, n] elements to words [..., register, thread]; elements are already bits of 32 / per_register."""
    out = np.zeros((*matrix_words.shape[:-2], d_registers, 128), np.uint32)
    for within in range(per_register):
        r, t = np.meshgrid(np.arange(d_registers), np.arange(128), indexing="ij")
        row, column = fragment_row_column(t, r * per_register + within)
        out |= matrix_words[..., row, column].astype(np.uint32) << np.uint32(32 // per_register * within)
    return out


def from_fragments(words, n, per_register):
    out = np.zeros((*words.shape[:-2], 64, n), np.uint32)
    r, t = np.meshgrid(np.arange(words.shape[-2]), np.arange(128), indexing="ij")
    for within in range(per_register):
        row, column = fragment_row_column(t, r * per_register + within)
        bits = 32 // per_register
        out[..., row, column] = words >> np.uint32(bits * within) & np.uint32((1 << bits) - 1)
    return out


def a_to_registers(bits):
    """[..., 64, k] elements to words [..., 4, 128]."""
    size = bits.dtype.itemsize
    per = 4 // size
    out = np.zeros((*bits.shape[:-2], 4, 128), np.uint32)
    r, t = np.meshgrid(np.arange(4), np.arange(128), indexing="ij")
    for within in range(per):
        row, column = a_register_row_column(t, r, within, per)
        out |= bits[..., row, column].astype(np.uint32) << np.uint32(8 * size * within)
    return out


def bits_of_integers(kind, values):
    """Small integers, which every format holds exactly, as the bits of `kind`."""
    values = np.asarray(values)
    if kind in ("s8", "u8"):
        return values.astype(np.int8).view(np.uint8)
    if kind in ("tf32", "f32"):
        return values.astype(np.float32).view(np.uint32)
    known, inverse = np.unique(values, return_inverse=True)
    bits = np.array([encode(FORMATS[kind], Fraction(int(v)) if v else 0.0) for v in known])
    return bits[inverse].reshape(values.shape).astype(np.uint16 if BYTES[kind] == 2 else np.uint8)
