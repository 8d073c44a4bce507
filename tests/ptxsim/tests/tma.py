"""Kernels that copy one box of a tensor by TMA, and what such a copy does, as index functions over numpy arrays."""

from itertools import product

import numpy as np
import ptxsim
from truth import module_text

TYPES = {"UINT8": np.uint8, "UINT16": np.uint16, "INT32": np.int32, "UINT64": np.uint64, "FLOAT16": np.float16, "FLOAT32": np.float32}

HEAD = """.visible .entry k(.param .align 64 .b8 map[128], .param .u64 out, .param .u32 bytes, .param .align 4 .b8 at[20])
{{
  .reg .b64 %map, %out, %a; .reg .b32 %t, %n, %i, %room, %bar, %c<5>; .reg .b32 %v<4>; .reg .pred %p, %first;
  .shared .align 8 .b8 bar[8];
  .extern .shared .align 1024 .b8 room[];
  mov.b64 %map, map; cvta.param.u64 %map, %map;
  ld.param.u64 %out, [out]; ld.param.u32 %n, [bytes];
  ld.param.u32 %c0, [at]; ld.param.u32 %c1, [at+4]; ld.param.u32 %c2, [at+8]; ld.param.u32 %c3, [at+12]; ld.param.u32 %c4, [at+16];
  mov.u32 %t, %tid.x; mov.u32 %room, room; mov.u32 %bar, bar; setp.eq.u32 %first, %t, 0;
"""
LOAD = (
    HEAD
    + """
  @%first mbarrier.init.shared::cta.b64 [%bar], 1;
  @%first fence.mbarrier_init.release.cluster;
  bar.sync 0;
  @%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], %n;
  @%first cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%room], [%map, {{{at}}}], [%bar];
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], 0;
  @!%p bra WAIT;
  shl.b32 %i, %t, 4;
NEXT:
  setp.ge.u32 %p, %i, %n;
  @%p bra END;
  add.u32 %t, %room, %i;
  ld.shared.v4.b32 {{%v0, %v1, %v2, %v3}}, [%t];
  cvt.u64.u32 %a, %i; add.u64 %a, %a, %out;
  st.global.v4.b32 [%a], {{%v0, %v1, %v2, %v3}};
  add.u32 %i, %i, 512;
  bra NEXT;
END:
  ret;
}}
"""
)
STORE = (
    HEAD
    + """
  shl.b32 %i, %t, 4;
NEXT:
  setp.ge.u32 %p, %i, %n;
  @%p bra FILLED;
  add.u32 %t, %room, %i;
  cvt.u64.u32 %a, %i; add.u64 %a, %a, %out;
  ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%a];
  st.shared.v4.b32 [%t], {{%v0, %v1, %v2, %v3}};
  add.u32 %i, %i, 512;
  bra NEXT;
FILLED:
  fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%first bra END;
  {copy};
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group 0;
END:
  ret;
}}
"""
)


def kernel(template, **fields):
    return ptxsim.load_ptx(module_text("sm_90", [template.format(**fields)])).kernel("k")


def coordinates(rank):
    return ", ".join(f"%c{d}" for d in range(rank))


class Tensor:
    """A tensor of `dims` (innermost first) whose rows lie `pad` elements apart from where they would lie densely."""

    def __init__(self, dims, dtype="UINT16", pad=0):
        self.dims, self.dtype = dims, dtype
        self.item = np.dtype(TYPES[dtype]).itemsize
        unit = 16 // self.item
        row = -(-dims[0] // unit) * unit + pad * unit
        self.padded = (*dims[:0:-1], row)
        rng = np.random.default_rng(sum(dims))
        self.memory = rng.integers(0, 256, int(np.prod(self.padded)) * self.item, np.uint8).view(TYPES[dtype]).reshape(self.padded)
        if dtype.startswith("FLOAT"):
            self.memory = np.arange(self.memory.size).reshape(self.padded).astype(TYPES[dtype])
        self.memory = np.ascontiguousarray(self.memory)

    @property
    def strides(self):
        return list(np.cumprod(self.padded[::-1])[:-1] * self.item)

    def map(self, device, tensor, box, **how):
        return device.tensor_map(tensor, self.dtype, self.dims, [int(s) for s in self.strides], box, **how)

    def inside(self, index):
        return all(0 <= i < n for i, n in zip(index, self.dims))


def box_positions(box, steps):
    """Index vectors of a box, innermost first, in the order in which they lie in shared memory."""
    ranges = [range(0, n, s) for n, s in zip(box, steps)]
    return [position[::-1] for position in product(*reversed(ranges))]


def shared_index(linear, item, swizzle):
    """Where the element lies in a box at an address that is a multiple of 1,024: 16-byte pieces change places."""
    byte = linear * item
    if swizzle:
        byte ^= (byte >> 7 & swizzle // 16 - 1) << 4
    return byte // item


def loaded(tensor, box, at, swizzle=0, steps=None, fill=0):
    """What a box looks like in shared memory, element by element."""
    positions = box_positions(box, steps or [1] * len(box))
    out = np.empty(len(positions), tensor.memory.dtype)
    for linear, position in enumerate(positions):
        index = tuple(a + p for a, p in zip(at, position))
        out[shared_index(linear, tensor.item, swizzle)] = tensor.memory[index[::-1]] if tensor.inside(index) else fill
    return out


def launch(template, device, arguments, nbytes, at, **fields):
    padded = np.array([*at, *[0] * (5 - len(at))], np.int32)
    map_bytes, out = arguments
    k = kernel(template, rank=len(at), at=coordinates(len(at)), **fields)
    return device.launch(k, 1, 32, [map_bytes, out, np.uint32(nbytes), padded.tobytes()], smem=max(nbytes, 16))
