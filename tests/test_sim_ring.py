"""The ring cache on a simulated GPU, counted: bytes do not grow with the length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.impls import Impl
from support.simulator import Simulator
from torch import Tensor

from diffattn_cuda.ring import Ring

SINK, LEFT = 64, 255
D, DV = 64, 128
HEADS = 4
KEY_BYTES = 2 * (2 * D + DV)  # of a key and its value


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(shape, generator=generator).to(torch.bfloat16)


def launches(
    impl: Impl,
    sim: Simulator,
    length: int,
    full: int,
    tokens: int = 1,
    new: int = 1,
    splits: int = 1,
) -> list[tuple[str, dict[str, Any]]]:
    """A step of `tokens`, over rings for steps of `new`; `full` of the heads see all keys."""
    slots = Ring.of_step(SINK, LEFT + 1, new).slots
    capacity, streaming = length + tokens if full else 0, HEADS - full
    sim.device.launches()  # forget those before
    impl.kvcache(
        normal(1, tokens, 2 * HEADS, D), normal(1, capacity, 2 * full, D),
        normal(1, capacity, full, DV), 0.5, normal(1, tokens, 2 * HEADS, D),
        normal(1, tokens, HEADS, DV), cache_seqlens=length, causal=True, window_size=(LEFT, 0),
        sink_size=SINK, streaming_heads=[head >= full for head in range(HEADS)], num_splits=splits,
        k_stream=normal(1, slots, 2 * streaming, D), v_stream=normal(1, slots, streaming, DV),
    )  # fmt: skip
    found: list[tuple[str, dict[str, Any]]] = sim.device.launches()
    return found


def test_bytes_do_not_grow(impl: Impl, sim: Simulator) -> None:
    """Those of sinks and window, within 2 %, after 1,000 tokens and after 500 million."""
    counted = []
    for length in (1_000, 40_000, 500_000_000):
        (step,) = launches(impl, sim, length, full=0)
        counted.append(step[1]["global_distinct_bytes"])
    assert len(set(counted)) == 1
    assert counted[0] == pytest.approx(HEADS * (SINK + LEFT + 1) * KEY_BYTES, rel=0.02)


@pytest.mark.parametrize("full", [1, 2], ids=["quarter", "half"])
def test_bytes_of_both_kinds(impl: Impl, sim: Simulator, full: int) -> None:
    """f·L + (1 − f)·(sinks + window), as on a full cache, in one launch."""
    (step,) = launches(impl, sim, 4095, full)
    keys = full * 4096 + (HEADS - full) * (SINK + LEFT + 1)
    assert step[1]["global_distinct_bytes"] == pytest.approx(keys * KEY_BYTES, rel=0.02)


def test_a_ring_costs_what_sinks_cost(impl: Impl, sim: Simulator) -> None:
    """Instructions of a step: those of the same mask on a full cache, within 2 %."""
    (step,) = launches(impl, sim, 2047, full=0)
    sim.device.launches()
    impl.kvcache(
        normal(1, 1, 2 * HEADS, D), normal(1, 2048, 2 * HEADS, D), normal(1, 2048, HEADS, DV), 0.5,
        normal(1, 1, 2 * HEADS, D), normal(1, 1, HEADS, DV), cache_seqlens=2047, causal=True,
        window_size=(LEFT, 0), sink_size=SINK, num_splits=1,
    )  # fmt: skip
    ((_, on_a_cache),) = sim.device.launches()
    got, want = (x["warp_instructions"] for x in (step[1], on_a_cache))
    assert got == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(
    "tokens, new, kernels",
    [
        (1, 1, ["decode"]),  # written by the CTAs that read
        (2, 2, ["decode"]),
        (2, 1, ["decode", "append"]),  # a slot is seen by the first row and taken by the second
        (100, 1, ["append", "decode", "append"]),  # full heads first, rings last
        (100, 100, ["append", "decode", "append"]),
    ],
)
def test_who_appends(impl: Impl, sim: Simulator, tokens: int, new: int, kernels: list[str]) -> None:
    found = [name for name, _ in launches(impl, sim, 1000, full=2, tokens=tokens, new=new)]
    assert len(found) == len(kernels)
    for name, kernel in zip(found, kernels, strict=True):
        assert f"{kernel}_kernel" in name
