"""Groups of maps: r signal maps share one noise map (arXiv 2510.06949).

q is (.., groups, r + 1, d), the last map of each group is the noise. Signal i of group g is output
head g·r + i. r = 1 is a pair, which every kernel takes. A kernel of pairs also serves a group, as
r pairs with the same noise; the functions here go from one form to the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_SIGNALS = 8  # to one noise map
# Where the ops take groups. Elsewhere groups become pairs.
NATIVE_DEVICES = {"cpu"}


def signals_of(q: Tensor) -> int:
    """r of (.., r + 1, d)."""
    return q.shape[-2] - 1


def heads_of(q: Tensor) -> tuple[int, ...]:
    """(.., groups·r) of (.., groups, r + 1, d): one output for each signal map."""
    return *q.shape[:-3], q.shape[-3] * signals_of(q)


def check_maps(name: str, q: Tensor, words: str = "groups, r + 1, headdim") -> None:
    if not 1 <= signals_of(q) <= MOST_SIGNALS:
        raise ValueError(
            f"{name} has shape {tuple(q.shape)}, so r = {signals_of(q)}; expected (.., {words}) "
            f"with r = 1 to {MOST_SIGNALS} signal maps, and behind them the noise map of each group"
        )


def check_key_heads(q: Tensor, k: Tensor, k_name: str, nheads_k: int) -> None:
    """That each KV head has whole groups, and K a map for signals and one for noise, or one."""
    groups, r = q.shape[-3], signals_of(q)
    if r > 1 and k.shape[-2] not in (1, 2):
        raise ValueError(
            f"{k_name} has shape {tuple(k.shape)}, accepted for q's {r} signal maps to one noise "
            f"map: (.., {nheads_k}, 2, headdim), K of the signals and K of the noise, or (.., "
            f"{nheads_k}, 1, headdim), one for both"
        )
    if r > 1 and (nheads_k == 0 or groups % nheads_k):
        raise ValueError(
            f"q has {groups} groups, {k_name} has {nheads_k} KV heads: groups must be a multiple "
            "of nheads_k"
        )


def lambda_per_row(lam: float | Tensor, dtype: torch.dtype, groups: int, r: int) -> float | Tensor:
    """λ so that it broadcasts against (batch, groups, r, seqlen_q, seqlen_k)."""
    if not isinstance(lam, Tensor):
        return lam
    lam = lam.to(dtype)
    if lam.dim() == 0:
        return lam
    each: Tensor = lam.unflatten(-1, (groups, -1))  # of a signal map, or one for its group
    return each[..., None, None] if each.dim() == 2 else each.movedim(1, -1)[..., None]


def for_kernel(q: Tensor) -> Tensor:
    """Groups where q's device takes them, else pairs."""
    return q if q.device.type in NATIVE_DEVICES else as_pairs(q)


def as_pairs(x: Tensor) -> Tensor:
    """(.., groups, r + 1, n) as (.., groups·r, 2, n): a copy, unless r is 1."""
    r = signals_of(x)
    if r == 1:
        return x
    signals, noise = x.split((r, 1), -2)
    return _joined(torch.stack, (signals, noise.expand(signals.shape)), -2).flatten(-4, -3)


def from_pairs(x: Tensor, r: int) -> Tensor:
    """(.., groups·r, 2, n) as (.., groups, r + 1, n): the noise of a group from its first pair.

    What has groups already stays as it is.
    """
    if signals_of(x) == r:
        return x
    signals, noise = x.unflatten(-3, (-1, r)).unbind(-2)
    return _joined(torch.cat, (signals, noise[..., :1, :]), -2)


def sum_pairs(x: Tensor, r: int) -> Tensor:
    """The same of gradients: the noise's is the sum over its pairs."""
    if signals_of(x) == r:
        return x
    signals, noise = x.unflatten(-3, (-1, r)).unbind(-2)
    return _joined(torch.cat, (signals, noise.sum(-2, keepdim=True)), -2)


def statistics_from_pairs(x: Tensor, r: int) -> Tensor:
    """(2, .., groups·r, seqlen_q) as (r + 1, .., groups, seqlen_q)."""
    return from_pairs(x.movedim(0, -2), r).movedim(-2, 0)


def sum_statistics(x: Tensor, r: int) -> Tensor:
    """The same of gradients."""
    return sum_pairs(x.movedim(0, -2), r).movedim(-2, 0)


def statistics_to_pairs(x: Tensor, once: bool = False) -> Tensor:
    """(r + 1, .., groups, seqlen_q) as (2, .., groups·r, seqlen_q).

    The noise's repeat in each pair; or `once`, for gradients, stand in the first pair alone.
    """
    r = len(x) - 1
    if r == 1:
        return x
    signals = x[:-1].movedim(0, -2)  # (.., groups, r, seqlen_q)
    noise = x[-1].unsqueeze(-2).expand(signals.shape)
    if once:
        noise = _joined(torch.cat, (noise[..., :1, :], torch.zeros_like(noise[..., 1:, :])), -2)
    return _joined(torch.stack, (signals, noise), 0).flatten(-3, -2)


def _joined(join: Callable[..., Tensor], parts: tuple[Tensor, ...], dim: int) -> Tensor:
    """torch.cat or torch.stack, without autocast, which refuses some dtypes of the parts."""
    device = parts[0].device.type
    if device not in ("cpu", "cuda"):
        return join(parts, dim)
    with torch.autocast(device, enabled=False):
        return join(parts, dim)
