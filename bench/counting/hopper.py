"""The forward of sm_90a, counted on a simulated H100."""

from __future__ import annotations

from . import sass
from .figures import Counts
from .model import tiled_pairs
from .runs import SIZES, Shape, on_hopper
from .training import problem

ARCHITECTURE = 90
SHAPES = [Shape(64, 64), Shape(64, 128), Shape(128, 128), Shape(128, 256)]
MAPS, WARP_ROWS = 2, 16


def forward(shape: Shape, seqlen: int, causal: bool) -> Counts:
    """The figures of training.forward, where this kernel has them."""
    launch = on_hopper(shape, seqlen, seqlen, causal)
    c, loop = launch.counters, sass.loop_of(launch.kernel, ARCHITECTURE)
    rows, keys = tile(shape)
    pairs = tiled_pairs(seqlen, rows, keys, causal)
    threads = MAPS * 32 / (WARP_ROWS * keys)  # a pair's share of a warp's instruction
    # Rows of Q once, and each CTA's keys once per map.
    copied = MAPS * (seqlen * shape.d + pairs / rows * (shape.d + shape.dv))
    figures = sass.resources(launch.kernel, ARCHITECTURE) | {
        "tile_rows": rows,
        "tile_keys": keys,
        "block_rows": rows,
        "hmma": loop.hmma,
        "others": loop.opcodes.total() - loop.hmma,
        "flop_ratio": c["mma_flop"] / (pairs * 4 * (shape.d + shape.dv)),
        "flop_per_pair": c["mma_flop"] / pairs,
        "shared_bytes_per_pair": _loop_bytes(shape, seqlen),
        "exp2_per_pair": loop.exp2 * threads,
        "fma_per_pair": loop.fma * threads,
        "alu_per_pair": loop.alu * threads,
        "l2_bytes_per_pair": (c["bulk_global_bytes"] + 32 * c["global_sectors"]) / pairs,
        "global_bytes_ratio": c["bulk_global_bytes"] / (2 * copied),
    }
    return Counts("fwd sm90", shape.d, shape.dv, problem(seqlen, causal), figures)


def _loop_bytes(shape: Shape, seqlen: int) -> float:
    """Of shared memory, per pair: what twice the keys add. The stash and the stores are per row."""
    first, second = (on_hopper(shape, seqlen, n * seqlen, False).counters for n in (1, 2))
    names = {"wgmma_shared_bytes": 1, "shared_wavefronts": 128}
    more = sum(size * (second[name] - first[name]) for name, size in names.items())
    return float(more) / seqlen**2


def tile(shape: Shape) -> tuple[int, int]:
    """Query rows and keys that are multiplied together, or not at all."""

    def flop(rows: int, keys: int) -> float:
        return float(on_hopper(shape, rows, keys, False).counters["mma_flop"])

    least = flop(1, 1)
    return (
        next(n for n in SIZES if flop(n + 1, 1) > least),
        next(n for n in SIZES if flop(1, n + 1) > least),
    )
