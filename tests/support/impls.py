"""The implementation under test, behind one small object.

`pytest --device cpu|cuda` picks it; a simulator joins by adding a function here, no test changes.
With `--impl reference` the eager reference poses as the implementation: a test of the suite itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
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
    contains_nan: bool = True  # a NaN reaches only the rows that see it

    def supports(self, needs: str) -> bool:
        return bool(getattr(self, needs))


def _package(device: str, dtypes: tuple[torch.dtype, ...], checks_values: bool) -> Impl:
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
    )


def _cuda() -> Impl:
    if not torch.cuda.is_available():
        pytest.exit("--device cuda: this machine has no GPU", returncode=5)
    return _package("cuda", HALF, checks_values=False)


def _widen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a reference function in fp32 when its tensors are 16-bit, and round its output once."""

    def widened(q: Tensor, *args: Any, **kwargs: Any) -> Any:
        if q.dtype not in HALF:
            return function(q, *args, **kwargs)
        widen = {k: a.float() if _is_half(a) else a for k, a in kwargs.items()}
        result = function(q.float(), *(a.float() if _is_half(a) else a for a in args), **widen)
        if isinstance(result, tuple):
            return result[0].to(q.dtype), result[1]
        return result.to(q.dtype)

    return widened


def _is_half(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype in HALF


def _reference() -> Impl:
    from diffattn_cuda import reference

    return Impl(
        name="reference",
        device=torch.device("cpu"),
        dtypes=ALL,
        func=_widen(reference.diff_flash_attn_func),
        varlen=_widen(reference.diff_flash_attn_varlen_func),
        kvcache=reference.diff_flash_attn_with_kvcache,  # writes its caches: no copies here
        has_ops=False,
        checks_values=False,
        contains_nan=False,
    )


def load(device: str, which: str) -> Impl:
    if which == "reference":
        return _reference()
    return _cuda() if device == "cuda" else _package("cpu", ALL, checks_values=True)
