"""The implementation under test, behind one small object.

`pytest --device cpu|sim|cuda` picks it.
With `--impl reference` the eager reference poses as the implementation: a test of the suite itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

HALF = (torch.float16, torch.bfloat16)
# A tensor core multiplies what a mask hides by 0, and 0 · NaN is NaN: see docs/softmax.md.
CUDA = {
    "saves_o2": True,
    "contains_nan_backward": False,
    "any_page": False,
    "zero_without_keys": False,
    "divides_first": False,
    "any_layout": False,
}
# Rows and keys, by compute capability; elsewhere SMALL_TILE.
TILES, SMALL_TILE = {"90": (128, 128)}, (64, 32)
ALL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Impl:
    """Three functions, where their tensors live, and what they can do."""

    name: str
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    func: Callable[..., Any]
    varlen: Callable[..., Any]
    kvcache: Callable[..., Any]
    has_ops: bool  # registered with torch.library: compiles, autocasts, has fake kernels
    checks_values: bool  # reads index tensors and raises (CUDA clamps instead: no host sync)
    saves_o2: bool = False  # for backward; the CPU's sums D over whole rows instead
    traces: bool = True  # its fake kernels are those of the device its tensors are on
    contains_nan: bool = True  # a NaN reaches only the rows that see it,
    tile: tuple[int, int] = (1, 1)  # or, in V, all rows of a tile (rows, keys) that is seen in part
    contains_nan_backward: bool = True  # nor do its gradients reach pairs that a mask hides
    large_scores: bool = True  # beyond 4e9 they do not overflow
    any_page: bool = True  # pages of any size
    zero_without_keys: bool = True  # O of a row that sees no key, also where λ is NaN
    divides_first: bool = True  # forward weighs V by probabilities, not by their numerators
    any_layout: bool = True  # reads V's halves where they lie
    same_bits: bool = True  # for any number of threads, which torch's own matmul does not give

    @property
    def clamps_values(self) -> bool:
        return self.has_ops and not self.checks_values

    def supports(self, needs: str) -> bool:
        return bool(getattr(self, needs))


def _package(
    device: str, dtypes: tuple[torch.dtype, ...], checks_values: bool, **others: Any
) -> Impl:
    import diffattn_cuda as ours

    return Impl(
        name=device,
        device=torch.device(device),
        dtypes=dtypes,
        func=ours.diff_flash_attn_func,
        varlen=ours.diff_flash_attn_varlen_func,
        kvcache=ours.diff_flash_attn_with_kvcache,
        has_ops=True,
        checks_values=checks_values,
        **others,
    )


def _cuda() -> Impl:
    if not torch.cuda.is_available():
        pytest.exit("--device cuda: this machine has no GPU", returncode=5)
    capability = "{}{}".format(*torch.cuda.get_device_capability())
    tile = TILES.get(capability, SMALL_TILE)
    return _package("cuda", HALF, checks_values=False, tile=tile, **CUDA)


def _sim(profile: str, seed: int) -> Impl:
    from . import simulator

    simulator.start(profile, seed)
    tile = TILES.get(profile.removeprefix("sm_"), SMALL_TILE)
    return _package("cpu", HALF, checks_values=False, traces=False, tile=tile, **CUDA)


def _reference() -> Impl:
    from diffattn_cuda import reference

    return Impl(
        name="reference",
        device=torch.device("cpu"),
        dtypes=(torch.float32, torch.float64),  # in 16 bits it rounds as users' code does: too much
        func=reference.diff_flash_attn_func,
        varlen=reference.diff_flash_attn_varlen_func,
        kvcache=reference.diff_flash_attn_with_kvcache,
        has_ops=False,
        checks_values=False,
        contains_nan=False,
        large_scores=False,  # torch.matmul sums the products of equal rows in different orders
        same_bits=False,
    )


def load(device: str, which: str, sim_profile: str, sim_seed: int) -> Impl:
    if which == "reference":
        return _reference()
    if device == "sim":
        return _sim(sim_profile, sim_seed)
    return _cuda() if device == "cuda" else _package("cpu", ALL, checks_values=True)
