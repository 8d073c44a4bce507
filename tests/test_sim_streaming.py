"""Streaming heads on a simulated GPU, counted: products, bytes and processors follow the mask."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.impls import Impl
from support.simulator import Simulator

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from counting import streaming  # noqa: E402
from counting.streaming import A100_PROCESSORS, Step  # noqa: E402


@pytest.mark.parametrize("heads", [(True, True), (False, True)], ids=["all", "half"])
@pytest.mark.parametrize("kernel", ["fwd_kernel", "bwd_kernel"])
def test_products_follow_the_mask(
    impl: Impl, sim: Simulator, kernel: str, heads: tuple[bool, ...]
) -> None:
    """At most 1.15 of the visible pairs, and two tiles for each block of rows, or of keys."""
    found = streaming.visited(kernel, heads)
    assert found.visible <= found.pairs and found.beyond <= 1.15


@pytest.mark.parametrize("full", [1, 2], ids=["quarter", "half"])
def test_bytes_of_decoding_follow_the_mask(impl: Impl, sim: Simulator, full: int) -> None:
    """f·L + (1 − f)·(sinks + window) of the cache, within 2 %, in two launches."""
    ratio, launches = streaming.decode_bytes(Step(full, splits=4))
    assert launches == 2 and ratio == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("rows, most", [(1, 1.1), (9, 1.15)], ids=["few", "many"])
def test_a_block_of_keys_costs_little_more_with_sinks(
    impl: Impl, sim: Simulator, rows: int, most: float
) -> None:
    assert 1 <= streaming.cost_of_sinks(rows) <= most


@pytest.mark.parametrize("full", [2, 4], ids=["quarter", "half"])
def test_processors_are_busy(impl: Impl, sim: Simulator, full: int) -> None:
    """8 KV heads of one sequence, some of which see all of 32,768 keys."""
    ctas, work = streaming.busy(Step(full, heads=8, seqlen=32768, d=8))
    assert ctas <= A100_PROCESSORS
    assert work >= 0.85 * A100_PROCESSORS
