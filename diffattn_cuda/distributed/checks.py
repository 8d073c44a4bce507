"""What `attention`, `shard` and `unshard` accept; each refusal names the argument."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .. import arguments
from .collectives import Ranks, gather, wait

MODES = ("allgather", "ulysses", "ring")


def known(mode: Any) -> str:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, accepted: {', '.join(map(repr, MODES))}")
    return mode


def dim_of(x: Tensor, dim: int) -> int:
    arguments.require_dense("x", x)
    dim = arguments.integer("dim", dim)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim is {dim}, accepted: a dimension of x, which has {x.dim()}")
    return dim % x.dim()


def two_chunks(mode: str) -> str:
    return f"accepted with mode={mode!r}: an even number, because a rank holds two chunks"


def check_tokens(q: Tensor, k: Tensor, v: Tensor, mode: str, packed: bool) -> None:
    dim = 0 if packed else 1
    for name, x in (("q", q), ("k", k)):
        if mode != "ulysses" and x.shape[dim] % 2:
            raise ValueError(f"{name} has {x.shape[dim]} tokens on this rank, {two_chunks(mode)}")
    if k.shape[: dim + 1] != v.shape[: dim + 1]:
        raise ValueError(
            f"v has shape {tuple(v.shape)}, expected k's batch and tokens, {tuple(k.shape)}"
        )
    if packed and q.shape[0] != k.shape[0]:
        raise ValueError(
            f"k has {k.shape[0]} tokens on this rank and q {q.shape[0]}, accepted with cu_seqlens: "
            "keys and queries of the same tokens"
        )


def check_mask(
    mode: str,
    mask: tuple[int, int, int, int],
    causal: bool,
    q: Tensor,
    k: Tensor,
    packed: bool,
) -> None:
    """What a mode cannot do. `mask` is as the ops take it."""
    left, right = mask[:2]
    windowed = left >= 0 or right >= 0 and not causal
    if mode == "ring":
        if packed:
            raise ValueError(
                "cu_seqlens was given with mode='ring', accepted: mode='allgather' or 'ulysses'"
            )
        if windowed:
            raise ValueError(
                f"window_size is {(left, right)} with mode='ring', accepted: (-1, -1), or another "
                "mode; a ring would carry keys that no row sees"
            )
        if causal and q.shape[1] != k.shape[1]:
            raise ValueError(
                f"k has {k.shape[1]} tokens on this rank and q {q.shape[1]}, accepted with "
                "mode='ring' and causal=True: as many; mode='allgather' takes other lengths"
            )
    if mode == "allgather" and packed and windowed and not causal:
        raise ValueError(
            f"window_size is {(left, right)} with cu_seqlens and causal=False, accepted with "
            "mode='allgather': causal=True, or (-1, -1); mode='ulysses' takes any"
        )


def _values_are_wanted() -> bool:
    """As the CUDA bindings read it: docs/environment.md."""
    return os.environ.get("DIFFATTN_CHECK", "").lower() in ("1", "true", "yes", "on")


def check_ranks(q: Tensor, k: Tensor, v: Tensor, ranks: Ranks) -> None:
    """Unequal messages would end in an error of the transport on some ranks, and a wait on others.

    Every rank reads the shapes of all, so every rank raises.
    """
    if torch.compiler.is_compiling() or not (q.device.type == "cpu" or _values_are_wanted()):
        return
    sizes = [size for x in (q, k, v) for size in (*x.shape, *[0] * (5 - x.dim()))]
    own = torch.tensor([sizes], device=q.device)
    shapes = wait(gather(own, ranks)).unflatten(-1, (3, 5)).tolist()
    for name, x, of_ranks in zip("qkv", (q, k, v), zip(*shapes, strict=True), strict=True):
        for rank, shape in enumerate(of_ranks):
            if shape != of_ranks[0]:
                first, other = (tuple(s[: x.dim()]) for s in (of_ranks[0], shape))
                raise ValueError(
                    f"{name} has shape {first} on rank 0 of the mesh and {other} on rank {rank}, "
                    "accepted: the same on each, as shard() gives it"
                )
