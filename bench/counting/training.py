"""The kernels of training: forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import sass
from .figures import Counts
from .model import MMA_FLOP, tiled_pairs
from .runs import (
    Launch,
    Shape,
    block_keys,
    block_rows,
    inference,
    only,
    saved_bytes,
    tile,
    training,
)

Run = Callable[[Shape, int, int, bool], list[Launch]]


def forward(shape: Shape, seqlen: int, causal: bool) -> Counts:
    return _forward("fwd", inference, shape, seqlen, causal)


def forward_saving(shape: Shape, seqlen: int, causal: bool) -> Counts:
    return _forward("fwd saving", training, shape, seqlen, causal)


def backward(shape: Shape, seqlen: int, causal: bool) -> Counts:
    launch = only(training(shape, seqlen, seqlen, causal), "bwd_kernel")
    more = Steps.between(
        only(training(shape, seqlen, seqlen, False), "bwd_kernel"),
        only(training(shape, 2 * seqlen, seqlen, False), "bwd_kernel"),
    )
    rows, keys = tile(shape, "bwd_kernel")
    pairs = tiled_pairs(seqlen, rows, keys, causal)
    row_bytes = 2 * (2 * shape.d + shape.dv) + 5 * 4  # Q, u and the five numbers of a row
    copied_rows = _block_sights(seqlen, block_keys(shape), causal)
    once = 2 * seqlen * _key_elements(shape) + copied_rows * row_bytes
    figures = _matrix(launch, pairs, 12 * shape.d + 4 * shape.dv) | more.wavefronts() | {
        "tile_rows": rows,
        "tile_keys": keys,
        "global_bytes_ratio": launch.counters["async_bytes"] / once,
        "saved_bytes_per_row": saved_bytes(shape, seqlen),
    }  # fmt: skip
    figures |= more.reds(sass.loop_of(launch.kernel).hmma)
    return Counts("bwd", shape.d, shape.dv, problem(seqlen, causal), figures)


def around_backward(shape: Shape, seqlen: int) -> list[Counts]:
    """The small kernels before and after the main one: bound by memory."""
    kernels = [
        ("bwd prepare", "prepare_kernel", False),
        ("bwd round", "round_dq_kernel", False),
        ("bwd weight", "sum_weight_parts", True),
    ]
    counts = []
    for name, kernel, normed in kernels:
        launch = only(training(shape, seqlen, seqlen, False, normed), kernel)
        per_row = launch.counters["global_distinct_bytes"] / seqlen
        figures = sass.resources(launch.kernel) | {"bytes_per_row": per_row}
        counts.append(Counts(name, shape.d, shape.dv, problem(seqlen, False), figures))
    return counts


def problem(seqlen: int, causal: bool) -> str:
    return f"S = {seqlen}, {'causal' if causal else 'full'}"


def _forward(name: str, run: Run, shape: Shape, seqlen: int, causal: bool) -> Counts:
    launch = only(run(shape, seqlen, seqlen, causal), "fwd_kernel")
    more = Steps.between(
        only(run(shape, seqlen, seqlen, False), "fwd_kernel"),
        only(run(shape, seqlen, 2 * seqlen, False), "fwd_kernel"),
    )
    rows, keys = tile(shape, "fwd_kernel")
    pairs = tiled_pairs(seqlen, rows, keys, causal)
    block = block_rows(shape)
    copied_keys = _block_sights(seqlen, block, causal)
    once = 2 * (2 * seqlen * shape.d + copied_keys * _key_elements(shape))
    figures = _matrix(launch, pairs, 4 * shape.d + 4 * shape.dv) | more.wavefronts() | {
        "tile_rows": rows,
        "tile_keys": keys,
        "block_rows": block,
        "global_bytes_ratio": launch.counters["async_bytes"] / once,
    }  # fmt: skip
    return Counts(name, shape.d, shape.dv, problem(seqlen, causal), figures)


def _block_sights(seqlen: int, block: int, causal: bool) -> int:
    """Keys that blocks of rows see, or rows that see blocks of keys, summed over the blocks."""
    return tiled_pairs(seqlen, block, block, causal) // block


def _key_elements(shape: Shape) -> int:
    """Of K and V, a key."""
    return shape.k_components * shape.d + shape.dv


def _matrix(launch: Launch, pairs: int, formula: int) -> dict[str, float]:
    """Figures of a kernel that is bound by its matrix products."""
    c, loop = launch.counters, sass.loop_of(launch.kernel)
    # A warp's instructions in a loop of hmma·MMA_FLOP flop.
    per_pair = 32 / (loop.hmma * MMA_FLOP) * c["mma_flop"] / pairs
    return sass.resources(launch.kernel) | {
        "hmma": loop.hmma,
        "others_per_hmma": loop.others_per_hmma,
        "flop_ratio": c["mma_flop"] / (pairs * formula),
        "wavefronts_per_mma": _operand_wavefronts(c) / c["inst_mma"],
        "wavefronts_ratio": c["shared_wavefronts"] / c["shared_wavefronts_ideal"],
        "flop_per_pair": c["mma_flop"] / pairs,
        "shared_bytes_per_pair": _operand_wavefronts(c) * 128 / pairs,
        "exp2_per_pair": loop.exp2 * per_pair,
        "fma_per_pair": loop.fma * per_pair,
        "alu_per_pair": loop.alu * per_pair,
        "l2_bytes_per_pair": c["global_sectors"] * 32 / pairs,
    }


def _operand_wavefronts(counters: dict[str, Any]) -> float:
    return counters["shared_wavefronts"] - counters["async_bytes"] / 128


@dataclass(frozen=True)
class Steps:
    """What the main loop alone does: the counters of the steps that a longer problem adds."""

    counters: dict[str, float]

    @classmethod
    def between(cls, shorter: Launch, longer: Launch) -> Steps:
        names = ("inst_mma", "inst_atomic", "global_sectors", "async_bytes", "shared_wavefronts",
                 "shared_wavefronts_ideal")  # fmt: skip
        return cls({name: longer.counters[name] - shorter.counters[name] for name in names})

    def wavefronts(self) -> dict[str, float]:
        c = self.counters
        return {
            "loop_wavefronts_per_mma": _operand_wavefronts(c) / c["inst_mma"],
            "loop_wavefronts_ratio": c["shared_wavefronts"] / c["shared_wavefronts_ideal"],
        }

    def reds(self, hmma: int) -> dict[str, float]:
        """`hmma` is mma per warp and step. All else that a step moves is whole sectors copied."""
        c = self.counters
        sectors = c["global_sectors"] - c["async_bytes"] / 32
        return {
            "reds_per_step": c["inst_atomic"] / (c["inst_mma"] / hmma),
            "sectors_per_red": sectors / c["inst_atomic"],
        }
