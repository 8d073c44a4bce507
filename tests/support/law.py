"""The law of tolerance.

Per row, in L2:

    |got - exact|  <=  factor x |emulated - exact|  +  u x |exact|

with factor 2 for outputs and 3 for gradients, u the dtype's unit roundoff, `exact` the reference
in fp64 and `emulated` the fused computation with its necessary roundings (support.emulation).
A limit on the maximum error lets a tile weighted x1.1 or a lambda off by 1 % pass, because the
first rows set it; a limit per row does not.

|emulated - exact| is a random quantity, and of few degrees of freedom where one rounding dominates
(the row of a single visible key: its dq is the rounding of <dO, O> times one key). So it is taken
as the largest over `VARIANTS` emulated runs, or, if that is larger, a pool over the batch, the
heads and the `NEAR` nearest positions on each side: those rows are draws from one distribution,
and a row whose emulation was exact by luck must not condemn a kernel whose was not. 16-bit dtypes
pool by the root mean square. fp32 and fp64 pool by the maximum: there the error comes from the
order of summation alone, the rounding of one large logit can decide a row, and the tail is long
(so `NEAR_WIDE` positions are pooled);
what is allowed is still three to four decades below any of the faults in test_suite_mutants.py.
The verdict stays per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from .case import SHORT

VARIANTS = 4
NEAR = 8
NEAR_WIDE = 32  # fp32 and fp64
FORWARD, GRADIENT = 2.0, 3.0


@dataclass(frozen=True)
class Verdict:
    """The worst row of one comparison."""

    name: str
    ratio: float  # error over what the law allows: red above 1
    row: tuple[int, ...]
    error: float
    allowed: float
    dtype: torch.dtype

    def __str__(self) -> str:
        return (
            f"the law is broken: {self.name} in {SHORT[self.dtype]}, worst row {self.row}: "
            f"L2 error {self.error:.3e} is {self.ratio:.2f} x the allowed {self.allowed:.3e}"
        )


def emulated_squares(
    exact: Tensor,
    emulated: list[Tensor],
    shared: tuple[int, ...] = (),
    pool_max: bool = False,
    gain: Tensor | None = None,
) -> Tensor:
    """Squared L2 error that an emulated run may have, by row.

    Rows are (batch, position, ..., width). `shared` dims and near positions are pooled, after
    division by each row's `gain` (the norm's rstd: a short row has its error blown up).
    """
    exact = exact.detach().cpu().double()
    runs = torch.stack([(e.double() - exact).square().sum(-1) for e in emulated])
    if not shared or runs.numel() == 0:
        return runs.amax(0)
    weight = torch.ones(()) if gain is None else gain.double().square()
    runs = runs / weight
    pooled = runs.amax(0).amax(shared, True) if pool_max else runs.mean(0).mean(shared, True)
    line = pooled.reshape(1, 1, -1)
    if pool_max:
        near = max_pool1d(line, 2 * NEAR_WIDE + 1, 1, NEAR_WIDE)
    else:
        near = avg_pool1d(line, 2 * NEAR + 1, 1, NEAR, count_include_pad=False)
    return torch.maximum(runs.amax(0), near.reshape(pooled.shape)) * weight


def judge(
    name: str, got: Tensor, exact: Tensor, squares: Tensor, size: Tensor, factor: float
) -> Verdict:
    """Hold each row (last dimension) of `got` to the law.

    squares: the emulation's squared error by row. size: the L2 norm that u multiplies.
    """
    if got.shape != exact.shape:
        raise AssertionError(f"{name} has shape {tuple(got.shape)}, not {tuple(exact.shape)}")
    dtype, got, exact = got.dtype, got.detach().cpu().double(), exact.detach().cpu()
    error = (got - exact).norm(dim=-1)
    allowed = factor * squares.sqrt() + torch.finfo(dtype).eps / 2 * size
    ratio = torch.where(error == allowed, 0.0, error / allowed)  # 0 / 0: exact, as demanded
    ratio = torch.where(torch.isfinite(got).all(-1), ratio, torch.inf)
    if ratio.numel() == 0:
        return Verdict(name, 0.0, (), 0.0, 0.0, dtype)
    index = int(ratio.argmax())
    row = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), ratio.shape))
    worst = [float(x.reshape(-1)[index]) for x in (ratio, error, allowed)]
    return Verdict(name, worst[0], row, worst[1], worst[2], dtype)


def enforce(verdict: Verdict) -> None:
    if not verdict.ratio <= 1:
        raise AssertionError(str(verdict))
