"""What the modules of `nn` demand of their arguments, besides what the functions demand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import arguments, groups


def integer(name: str, value: Any, accepted: str = "an integer") -> int:
    """No tensor: a module's sizes are known without reading memory, which may be a device's."""
    if isinstance(value, Tensor):
        raise TypeError(f"{name} is a tensor, accepted: {accepted}")
    return arguments.integer(name, value, accepted)


def integers(**sizes: Any) -> list[int]:
    return [integer(name, value) for name, value in sizes.items()]


def head_dim(embed_dim: int, num_heads: int, components: int) -> int:
    embed_dim, num_heads = integers(embed_dim=embed_dim, num_heads=num_heads)
    parts = components * num_heads
    if parts < 1 or embed_dim % parts:
        name = "num_heads" if components == 1 else f"{components}·num_heads"
        raise ValueError(f"embed_dim is {embed_dim}; it must be a multiple of {name} = {parts}")
    return embed_dim // parts


def head_counts(num_heads: int, num_kv_heads: int | None, signal_per_noise: int) -> list[int]:
    """All three, num_kv_heads also where it was None."""
    heads, r = integers(num_heads=num_heads, signal_per_noise=signal_per_noise)
    if not 1 <= r <= groups.MOST_SIGNALS:
        raise ValueError(f"signal_per_noise is {r}; accepted: 1 to {groups.MOST_SIGNALS}")
    if heads % r:
        raise ValueError(f"num_heads is {heads}; it must be a multiple of signal_per_noise = {r}")
    kv_heads = heads // r if num_kv_heads is None else integer("num_kv_heads", num_kv_heads)
    if kv_heads < 1 or heads // r % kv_heads:
        what = "num_heads" if r == 1 else "the number of groups, num_heads / signal_per_noise"
        raise ValueError(
            f"num_kv_heads is {kv_heads}; it must divide {what}, which is {heads // r}"
        )
    return [heads, kv_heads, r]


def check_implementation(implementation: str, known: Iterable[str]) -> None:
    if implementation not in known:
        given = arguments.shown(implementation)
        raise ValueError(f"implementation is {given}; it must be one of {list(known)}")


def check_rel_pos(
    rel_pos: tuple[Tensor, Tensor], head_dim: int, seqlen: int, device: torch.device
) -> None:
    pair = isinstance(rel_pos, tuple | list) and len(rel_pos) == 2
    if not pair or not all(isinstance(table, Tensor) for table in rel_pos):
        raise TypeError(f"rel_pos is {type(rel_pos).__name__}, expected two tensors, (cos, sin)")
    cos, sin = rel_pos
    for name, table in (("rel_pos[0]", cos), ("rel_pos[1]", sin)):
        arguments.require_dense(name, table)
        if not table.is_floating_point():
            raise TypeError(f"{name} has dtype {table.dtype}, accepted: floating point")
        if table.device != device:
            raise ValueError(f"{name} is on device {table.device}, x is on {device}")
    if cos.dim() != 2 or cos.shape != sin.shape or not 0 < cos.shape[1] <= head_dim // 2:
        raise ValueError(
            f"rel_pos has shapes {tuple(cos.shape)} and {tuple(sin.shape)}; both must be "
            f"(positions, rotary_dim/2), rotary_dim at most the head dim, {head_dim}"
        )
    if cos.shape[0] < seqlen:
        raise ValueError(f"rel_pos has {cos.shape[0]} positions; x has {seqlen} tokens")


def check_input(x: Tensor, embed_dim: int, linear: nn.Module) -> None:
    """That x is what the projection `linear` reads."""
    arguments.require_dense("x", x)
    arguments.refuse_tangents((x,))
    if x.dim() != 3 or x.shape[-1] != embed_dim:
        raise ValueError(
            f"x is {tuple(x.shape)}; it must be (batch, seqlen, embed_dim = {embed_dim})"
        )
    _check_dtype(x, linear)


def _check_dtype(x: Tensor, linear: nn.Module) -> None:
    """That the projection which reads x takes its dtype."""
    # A replacement, for example a quantized one, may cast.
    weight = linear.weight if type(linear) is nn.Linear else None
    if weight is not None and x.is_meta and not weight.is_meta:
        raise ValueError(f"x is on device meta, the parameters are on {weight.device}")
    if x.is_floating_point() and (weight is None or x.dtype == weight.dtype):
        return
    if not x.is_floating_point() or not torch.is_autocast_enabled(x.device.type):
        accepted = "floating point" if weight is None else f"that of the parameters, {weight.dtype}"
        raise TypeError(f"x has dtype {x.dtype}, accepted: {accepted}")


def check_cached(
    k: Tensor,
    v: Tensor,
    batch: int,
    heads: tuple[int, int],
    widths: tuple[int, int],
    names: tuple[str, str] = ("cache.k", "cache.v"),
) -> None:
    """All that the kernels ask of its shapes, before the projections take memory."""
    for name, t, count, width in zip(names, (k, v), heads, widths, strict=True):
        arguments.require_dense(name, t)
        if t.dim() < 4 or t.shape[-1] != width or t.shape[2:].numel() != count * width:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}, expected (batch, capacity, {count}, {width})"
            )
    if k.shape[0] != batch:
        raise ValueError(f"{names[0]} has batch {k.shape[0]}, x has {batch}: they must be equal")
    if v.shape[:2] != k.shape[:2]:
        raise ValueError(
            f"{names[1]} has shape {tuple(v.shape)}, expected (batch, capacity) as {names[0]} has "
            f"them, {tuple(k.shape[:2])}, in front"
        )


def check_seqlens(seqlens: object, batch: int) -> None:
    if isinstance(seqlens, Tensor):
        arguments.require_dense("cache.seqlens", seqlens)
        if seqlens.shape != (batch,):
            raise ValueError(
                f"cache.seqlens has shape {tuple(seqlens.shape)}, expected (batch,) = ({batch},)"
            )
    # These do not allow the cache's seqlens to advance, and would raise after the keys are written.
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "cache cannot be appended to under a transform of torch.func (grad, jvp, vmap ..)"
        )
