"""Streaming heads on a simulated GPU, counted: products and bytes follow the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.impls import Impl
from support.simulator import Simulator
from torch import Tensor

from diffattn_cuda import reference

SINK, LEFT, SEQLEN = 64, 255, 1024
D, DV = 64, 128
MIXES = pytest.mark.parametrize("streaming", [(True, True), (False, True)], ids=["all", "half"])
# For these head dims: rows of a CTA and keys of a step; keys of a CTA and rows of a step.
FORWARD_BLOCK, FORWARD_STEP = 128, 64
BACKWARD_BLOCK, BACKWARD_STEP = 128, 32


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(shape, generator=generator).to(torch.bfloat16)


def counters(sim: Simulator, kernel: str, call: Callable[[], object]) -> dict[str, Any]:
    """Of the only launch of a kernel."""
    sim.device.launches()  # forget those before
    call()
    found = [c for name, c in sim.device.launches() if f"{len(kernel)}{kernel}" in name]
    assert len(found) == 1
    return found[0]


def step(impl: Impl, **mask: Any) -> Callable[[], object]:
    """A forward and backward of two heads."""

    def call() -> None:
        q, k, v = (normal(1, SEQLEN, *x).requires_grad_() for x in [(4, D), (4, D), (2, DV)])
        impl.func(q, k, v, 0.5, **mask).backward(normal(1, SEQLEN, 2, DV))

    return call


def visible_pairs(streaming: tuple[bool, ...]) -> int:
    masks = [((LEFT, 0), SINK) if streams else ((-1, -1), 0) for streams in streaming]
    return sum(
        int(reference.visible_keys(SEQLEN, SEQLEN, True, window, "cpu", sink).sum())
        for window, sink in masks
    )


@MIXES
@pytest.mark.parametrize("kernel", ["fwd_kernel", "bwd_kernel"])
def test_products_follow_the_mask(
    impl: Impl, sim: Simulator, kernel: str, streaming: tuple[bool, ...]
) -> None:
    """At most 1.15 of the visible pairs, and two tiles for each block of rows, or of keys."""
    everything = counters(sim, kernel, step(impl))["mma_flop"] / (2 * SEQLEN**2)  # of a pair
    mask = {"window_size": (LEFT, 0), "sink_size": SINK, "streaming_heads": streaming}
    pairs = counters(sim, kernel, step(impl, causal=True, **mask))["mma_flop"] / everything
    blocks, tile = {
        "fwd_kernel": (SEQLEN // FORWARD_BLOCK, FORWARD_BLOCK * FORWARD_STEP),
        "bwd_kernel": (SEQLEN // BACKWARD_BLOCK + 1, BACKWARD_BLOCK * BACKWARD_STEP),
    }[kernel]
    seen = visible_pairs(streaming)
    assert seen <= pairs <= 1.15 * seen + 2 * len(streaming) * blocks * tile


@pytest.mark.parametrize("full", [1, 2], ids=["quarter", "half"])
def test_bytes_of_decoding_follow_the_mask(impl: Impl, sim: Simulator, full: int) -> None:
    """f·L + (1 − f)·(sinks + window) of the cache, within 2 %, in two launches."""
    seqlen, nheads_k, splits = 8192, 4, 4
    streaming = tuple(head >= full for head in range(nheads_k))
    asked: list[int] = []

    def serve(params: Any) -> None:
        with sim.device:
            asked.append(params.workspace())
        sim.launch_described(params)

    def call() -> None:
        impl.kvcache(
            normal(1, 1, 2 * nheads_k, D), normal(1, seqlen, 2 * nheads_k, D),
            normal(1, seqlen, nheads_k, DV), 0.5, causal=True, window_size=(LEFT, 0),
            sink_size=SINK, streaming_heads=streaming, num_splits=splits,
        )  # fmt: skip

    sim.device.launches()
    sim.serve = serve
    try:
        call()
    finally:
        sim.serve = sim.launch_described
    launches = sim.device.launches()
    assert len(launches) == 2
    counted = launches[0][1]["global_distinct_bytes"] - asked[0]
    keys = full * seqlen + (nheads_k - full) * (SINK + LEFT + 1)
    assert counted == pytest.approx(keys * 2 * (2 * D + DV), rel=0.02)


@pytest.mark.parametrize("full", [2, 4], ids=["quarter", "half"])
def test_processors_are_busy(impl: Impl, sim: Simulator, full: int) -> None:
    """8 KV heads of one sequence, some of which see all of 32,768 keys, on 108 processors."""
    seqlen, nheads_k, d, processors = 32768, 8, 8, 108
    asked: list[int] = []

    def serve(params: Any) -> None:
        with sim.device:
            asked.append(params.workspace())

    sim.serve = serve
    try:
        impl.kvcache(
            normal(1, 1, 2 * nheads_k, d), normal(1, seqlen, 2 * nheads_k, d),
            normal(1, seqlen, nheads_k, 2 * d), 0.5, causal=True, window_size=(LEFT, 0),
            sink_size=SINK, streaming_heads=[head >= full for head in range(nheads_k)],
        )  # fmt: skip
    finally:
        sim.serve = sim.launch_described
    # For each row: two results of each split, an LSE and what it lost, and the number of splits.
    splits = (asked[0] // nheads_k - 4) // (2 * (2 * d + 2) * 4)
    ctas = full * splits + nheads_k - full
    work = splits * (full + (nheads_k - full) * (SINK + LEFT + 1) / seqlen)
    assert ctas <= processors
    assert work >= 0.85 * processors
