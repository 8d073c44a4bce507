"""Decoding on simulated GPUs: every device, many seeds, how the keys are split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.cache import make_cache
from support.case import Case
from support.impls import Impl
from support.simulator import PROFILES, Simulator
from test_kvcache import check_step

ROWS = pytest.mark.parametrize("sq", [1, 9], ids=["few", "many"])
BASE = Case(heads=4, heads_k=2, causal=True, lam="token", norm="affine", dtype=torch.bfloat16)


@ROWS
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_device(impl: Impl, sim: Simulator, profile: str, d: int, sq: int) -> None:
    with sim.on(profile):
        cache = make_cache(BASE.but(sq=sq, d=d, dv=2 * d), impl, "paged16", [190, 33], [0, 7])
        check_step(impl, cache, sq, num_splits=3)


@ROWS
def test_any_seed(impl: Impl, sim: Simulator, sq: int) -> None:
    """Nothing but ex2's last bits may follow from what the hardware leaves open."""
    for seed in range(10):
        with sim.on("sm_80", seed):
            cache = make_cache(BASE.but(sq=sq, d=64, dv=128), impl, "paged16", [190, 33])
            check_step(impl, cache, sq, num_splits=3)


def splits_of(
    impl: Impl, sim: Simulator, patch: pytest.MonkeyPatch, batch: int, sq: int, capacity: int,
    num_splits: int = 0,
) -> int:  # fmt: skip
    """Of a call with one KV head, by the workspace that it asks for."""
    asked = []

    def ask(params: Any) -> None:
        with sim.device:
            asked.append(params.workspace())

    patch.setattr(sim, "serve", ask)

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    cache = zeros(batch, capacity, 2, 8), zeros(batch, capacity, 1, 16)
    impl.kvcache(zeros(batch, sq, 2, 8), *cache, 0.5, cache_seqlens=0, num_splits=num_splits)
    counts, part = batch * sq * 4, batch * sq * 2 * (16 + 2) * 4
    splits, rest = divmod(asked[0] - counts, part) if asked[0] else (1, 0)
    assert rest == 0
    return splits


@pytest.mark.parametrize(
    ("profile", "batch", "sq", "capacity", "splits"),
    [
        ("sm_80", 1, 1, 512, 1),  # too few keys to share
        ("sm_80", 1, 1, 4096, 8),  # 512 keys each, though processors idle
        ("sm_80", 1, 1, 2**17, 98),  # nine tenths of 108 processors will do
        ("sm_90", 1, 1, 2**17, 119),  # and of 132
        ("sm_80", 108, 1, 8192, 1),
        ("sm_80", 40, 1, 8192, 5),  # 200 CTAs in two waves; 120 would need two as well
        ("sm_80", 1, 64 * 32, 8192, 1),  # 64 blocks of rows, whose workspace outweighs the cache
    ],
)
def test_splits_are_chosen_from_shapes(
    impl: Impl, sim: Simulator, profile: str, batch: int, sq: int, capacity: int, splits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with sim.on(profile):
        assert splits_of(impl, sim, monkeypatch, batch, sq, capacity) == splits


@pytest.mark.parametrize(("num_splits", "splits"), [(1, 1), (5, 5), (400, 256)])
def test_splits_asked_for_are_taken(
    impl: Impl, sim: Simulator, num_splits: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there are blocks of 16 keys."""
    assert splits_of(impl, sim, monkeypatch, 1, 1, 4096, num_splits) == splits
