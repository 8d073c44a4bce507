"""What is checked on one device: each kernel and dtype, over its head dims, against fp64."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import functional
from .problems import CACHES, SIGNALS, Problem, Results, cached, dense, ring

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
ON_CUDA = ("bf16", "fp16")
# The widths that the CUDA kernels are compiled for serve every multiple of 8 up to them.
WIDTHS = {"8-32": 32, "40-64": 64, "72-96": 96, "104-128": 128}
OPS = ("forward", "backward", "varlen", "decode", "groups")


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    op: str
    dtype: str
    head_dims: str

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} d = {self.head_dims}"

    def shapes(self) -> Iterator[tuple[int, int]]:
        """(d, dv): all head dims, V1 and V2 in turn; the widest has both."""
        last = WIDTHS[self.head_dims]
        for d in range(last - 24, last + 1, 8):
            yield d, d if d // 8 % 2 else 2 * d
        yield last, last


@dataclass
class Outcome:
    """Of one check. `error` and `allowed` are of its worst row; a right one has no `failure`."""

    check: Check
    error: float = 0.0
    allowed: float = 0.0
    worst: str = ""
    failure: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def checks_of(device: str) -> list[Check]:
    """In the order in which they run: what shares exact results is together."""
    dtypes = ON_CUDA if device.startswith("cuda") else tuple(DTYPES)
    return [Check(op, dtype, dims) for dims in WIDTHS for op in OPS for dtype in dtypes]


def run(check: Check, device: torch.device) -> Outcome:
    """Raises what a kernel raises."""
    start, outcome = time.perf_counter(), Outcome(check)
    for d, dv in check.shapes():
        for label, problem in _problems(check.op, d, dv):
            got = _call(check, problem, device)
            _compare(outcome, f"d = {d}, dv = {dv}{label}", got, problem.results)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _problems(op: str, d: int, dv: int) -> Iterator[tuple[str, Problem]]:
    if op == "decode":
        yield ", contiguous", cached(d, dv, False)
        yield ", paged", cached(d, dv, True)
        yield ", ring", ring(d, dv)
    elif op == "groups":  # of maps
        yield ", dense", dense(d, dv, False, SIGNALS)
        yield ", cached", cached(d, dv, False, SIGNALS)
        yield ", paged", cached(d, dv, True, SIGNALS)
    else:
        yield "", dense(d, dv, op == "varlen")


def _call(check: Check, problem: Problem, device: torch.device) -> Results:
    """The results of the kernels, by the names that the exact ones have."""
    dtype = DTYPES[check.dtype]
    compute = torch.promote_types(dtype, torch.float32)
    x: dict[str, Any] = {
        name: t.to(device, compute if name in ("lam", "norm_weight") else dtype, copy=True)
        for name, t in problem.tensors.items()
    }
    layout = {
        name: t.to(device) if isinstance(t, Tensor) else t for name, t in problem.layout.items()
    }
    options = problem.options | layout | {"return_lse": True}
    if problem.dout is None:
        out, lse = functional.diff_flash_attn_with_kvcache(**x | options)
        return {"out": out, "lse": lse} | {name: x[name] for name in CACHES if name in x}
    varlen = check.op == "varlen"
    name = "diff_flash_attn_varlen_func" if varlen else "diff_flash_attn_func"
    backward = check.op != "forward"
    for t in x.values():
        t.requires_grad_(backward)
    out, lse = getattr(functional, name)(**x, **options)
    results = {"out": out, "lse": lse}
    if backward:
        grads = torch.autograd.grad(out, list(x.values()), problem.dout.to(device, dtype))
        results |= {f"d{name}": grad for name, grad in zip(x, grads, strict=True)}
    return results


# The law of the test suite in small: relative L2 per row, in units of the dtype's roundoff u. In 16
# bits, P and the result are rounded, and for gradients dS and the saved output too: the worst row
# of the CUDA kernels has 1.4 u, of their gradients 2.5 u. In fp32 and fp64 the order of summation
# decides: the worst row has 17 u, of gradients 38 u. What is wrong costs more: 1 % is 20 u in fp16
# and 168,000 u in fp32; 32 keys left out are 100 u in bf16.
HALF = {"gradient": 5.0, "result": 3.0}
FULL = {"gradient": 120.0, "result": 60.0}


def _compare(outcome: Outcome, where: str, got: Results, exact: Results) -> None:
    """Keeps the row that comes nearest to what it may have, or exceeds it most."""
    dtype = DTYPES[outcome.check.dtype]
    u = torch.finfo(dtype).eps / 2
    for name, x in got.items():
        kind = "gradient" if name.startswith("d") else "result"
        allowed = (HALF if dtype.itemsize == 2 else FULL)[kind] * u
        error = _worst_row(x.detach().cpu().double(), exact[name])
        if outcome.allowed == 0 or error / allowed > outcome.error / outcome.allowed:
            outcome.error, outcome.allowed, outcome.worst = error, allowed, f"{name}, {where}"
    if not outcome.error <= outcome.allowed:
        outcome.failure = (
            f"{outcome.worst}: a row is off by {outcome.error:.1e} of its norm, "
            f"at most {outcome.allowed:.1e} is rounding"
        )


def _worst_row(got: Tensor, exact: Tensor) -> float:
    """The largest relative error of a row; infinite where a number is not finite."""
    size = exact.norm(dim=-1)
    # A row of nearly nothing (dq of a row that sees one key) is held to the usual row.
    size = size.clamp(min=float(size.square().mean().sqrt()))
    error = (got - exact).norm(dim=-1) / size
    return float(error.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
