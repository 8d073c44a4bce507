"""The kernels of a step of decoding, over a paged cache and one new token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from diffattn_cuda import diff_flash_attn_with_kvcache

from . import sass
from .figures import Counts
from .runs import Launch, Shape, launches, normal, only, simulator

BLOCK = 16  # keys


@dataclass(frozen=True)
class Step:
    """One sequence, one KV head."""

    shape: Shape
    nheads: int = 4
    page: int = 64
    seqlen: int = 4096  # cached
    splits: int = 4

    @property
    def cache_bytes(self) -> int:
        """Of K and V of the cached tokens: what the formula has to read."""
        return self.seqlen * (self.shape.k_components * self.shape.d + self.shape.dv) * 2

    def __str__(self) -> str:
        splits = f"{self.splits} splits" if self.splits > 1 else "1 split"
        return f"{self.seqlen} + 1 keys in pages of {self.page}, {self.nheads} heads, {splits}"


def decode(step: Step) -> list[Counts]:
    found, workspace = _run(step)
    main, cache = only(found, "decode_kernel"), step.cache_bytes
    c, blocks = main.counters, step.seqlen / BLOCK
    figures = sass.resources(main.kernel) | {
        "copied_ratio": c["async_bytes"] / cache,
        "distinct_ratio": (c["global_distinct_bytes"] - workspace) / cache,
        "workspace_ratio": workspace / cache,
        "wavefronts_ratio": c["shared_wavefronts"] / c["shared_wavefronts_ideal"],
        "mma_per_block": c["inst_mma"] / blocks,
        "instructions_per_block": c["warp_instructions"] / blocks,
        "launches": len(found),
    }
    counts = [("decode", figures)]
    if step.splits > 1:
        combine = only(found, "combine_kernel")
        per_row = combine.counters["global_distinct_bytes"] / step.nheads
        counts.append(("combine", sass.resources(combine.kernel) | {"bytes_per_row": per_row}))
    shape = step.shape
    return [Counts(name, shape.d, shape.dv, str(step), figures) for name, figures in counts]


def _run(step: Step) -> tuple[list[Launch], int]:
    """The launches, and the bytes of the workspace that the call asked for."""
    sim, shape = simulator.start(), step.shape
    pages = -(-(step.seqlen + 1) // step.page)
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(0))
    table = order.reshape(1, pages).to(torch.int32)
    asked: list[int] = []

    def serve(params: Any) -> None:
        with sim.device:  # the architecture is chosen by device
            asked.append(params.workspace())
        sim.launch_described(params)

    def call() -> None:
        diff_flash_attn_with_kvcache(
            normal(0, 1, 1, 2 * step.nheads, shape.d),
            normal(1, pages, step.page, shape.k_components, shape.d),
            normal(2, pages, step.page, 1, shape.dv),
            0.8,
            normal(3, 1, 1, shape.k_components, shape.d),
            normal(4, 1, 1, 1, shape.dv),
            cache_seqlens=torch.tensor([step.seqlen], dtype=torch.int32),
            block_table=table,
            num_splits=step.splits,
        )

    sim.serve = serve
    try:
        return launches(call), asked[0]
    finally:
        sim.serve = sim.launch_described
