"""Context parallelism: one sequence over many GPUs, on torch.distributed's functional collectives.

Each rank of a mesh holds a part of a sequence's tokens, and `attention` gives it the output of its
own tokens. `shard` makes the parts and `unshard` joins them. Three modes say what travels; a model
uses one of them throughout, because the modes differ in which tokens a rank holds.

| mode | what travels | what it takes |
|---|---|---|
| `"allgather"` | keys and values, to every rank at once | every option |
| `"ulysses"` | tokens in exchange for heads | every option; the mesh's size divides the KV heads |
| `"ring"` | keys and values, from rank to rank | neither windows nor cu_seqlens |
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  the examples below use it
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .. import arguments, ops, score_caps
from ..arguments import Lambda, Window
from . import allgather, checks, ring, ulysses
from .checks import MODES
from .collectives import ranks_of
from .layout import Shard, Unshard

Result = Any

__all__ = ["MODES", "attention", "shard", "unshard"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Lambda | None,
    mesh: DeviceMesh,
    mode: str = "allgather",
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = (-1, -1),
    norm_weight: Tensor | None = None,
    norm_eps: float | None = None,
    out_scale: float = 1.0,
    deterministic: bool = False,
    return_lse: bool = False,
    sink_size: int = 0,
    streaming_heads: arguments.Heads = None,
    return_components: bool = False,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int = 0,
    softcap: float = 0.0,
) -> Result:
    """Differential attention of one sequence whose tokens lie on several ranks; differentiable.

    Every rank of the mesh calls it, with as many tokens and the same options. Arguments that are
    not listed are those of `diffattn_cuda.diff_flash_attn_func`; masks and windows count tokens of
    the whole sequence.

    λ per token is sharded like the queries. Any other λ and norm_weight are the same on each rank,
    and their gradient on a rank is the part that this rank computed, as it is of all parameters of
    a model under context parallelism: the sum over the ranks is the whole. FSDP and DDP over a mesh
    that includes these ranks take the mean; it belongs to the mean of the ranks' losses.

    Args:
        q: this rank's tokens, (batch, own seqlen_q, 2·nheads, d), or 5-D; as `shard` gives them.
        k: this rank's, (batch, own seqlen_k, 2·nheads_k, d), or as in V2, or 5-D.
        v: this rank's, (batch, own seqlen_k, nheads_k, dv).
        mesh: of one dimension, such as mesh["cp"] of a larger one.
        mode: "allgather", "ulysses" or "ring".
        cu_seqlens: (batch + 1,) int32, for packed sequences: where each starts, counted over all
            ranks, the same on each. q is then (own total, 2·nheads, d), k and v likewise, λ per
            token (own total, nheads). Queries and keys are of the same tokens.
        max_seqlen: with cu_seqlens, at least the longest length.

    Returns:
        What `diff_flash_attn_func` returns, of this rank's queries: out, (out, lse) with
        return_lse, (o, lse) with return_components.

    Raises:
        ValueError: as `diff_flash_attn_func`; a mesh of several dimensions; an odd number of own
            tokens, or ranks that hold different numbers of them (on CUDA the latter is found under
            DIFFATTN_CHECK=1, and else torch.distributed's to find); what the mode cannot do.
        TypeError: as `diff_flash_attn_func`; a mesh that is none.
        RuntimeError: as `diff_flash_attn_func`; torch.distributed's own, if another rank has gone.

    Examples:
        Under torchrun; here with one rank:

        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = dist.init_device_mesh("cpu", (1,), mesh_dim_names=("cp",))
        >>> q, k = torch.randn(2, 1, 128, 8, 64)
        >>> v = torch.randn(1, 128, 4, 128)
        >>> own = [shard(x, mesh["cp"], dim=1) for x in (q, k, v)]
        >>> out = unshard(attention(*own, 0.8, mesh["cp"], causal=True), mesh["cp"], dim=1)
        >>> from diffattn_cuda import diff_flash_attn_func
        >>> torch.allclose(out, diff_flash_attn_func(q, k, v, 0.8, causal=True), atol=1e-5)
        True
        >>> dist.destroy_process_group()
    """
    ranks, mode = ranks_of(mesh), checks.known(mode)
    arguments.check_tensors(q, k=k, v=v, lam=lam, norm_weight=norm_weight, cu_seqlens=cu_seqlens)
    packed = cu_seqlens is not None
    q = arguments.query_heads(q, "q", 4 if packed else 5)
    k = arguments.key_heads(k, v, "k", "v", 3 if packed else 4)
    options: dict[str, Any] = {
        "softmax_scale": arguments.softmax_scale_of(softmax_scale, q),
        "causal": arguments.flag("causal", causal),
        "window_size": arguments.window_of(window_size),
        "norm_weight": norm_weight,
        "norm_eps": norm_eps,
        "out_scale": out_scale,
        "deterministic": arguments.flag("deterministic", deterministic),
        "return_lse": arguments.flag("return_lse", return_lse),
        "sink_size": sink_size,
        "streaming_heads": streaming_heads,
        "return_components": return_components,
        "softcap": score_caps.softcap_of(softcap),
    }
    mask = arguments.mask_of(window_size, causal, sink_size, streaming_heads, k.shape[-3])
    apart = arguments.components_asked(
        return_components, options["return_lse"], norm_weight, norm_eps, out_scale
    )
    arguments.epilogue(norm_weight, norm_eps, out_scale, q, ops.width_of(v, k))
    if not apart:
        arguments.expand_lambda(lam, q)
    checks.check_tokens(q, k, v, mode, packed)
    checks.check_mask(mode, mask, options["causal"], q, k, packed)
    checks.check_ranks(q, k, v, ranks)
    max_seqlen = arguments.integer("max_seqlen", max_seqlen)
    if mode == "ulysses":
        result = ulysses.attend(q, k, v, lam, ranks, options, cu_seqlens, max_seqlen)
    elif mode == "ring":
        result = ring.attend(q, k, v, lam, ranks, options)
    elif cu_seqlens is not None:
        result = allgather.attend_packed(q, k, v, lam, ranks, options, cu_seqlens, max_seqlen)
    else:
        result = allgather.attend(q, k, v, lam, ranks, options)
    return result if len(result) > 1 else result[0]


def shard(x: Tensor, mesh: DeviceMesh, dim: int, mode: str = "allgather") -> Tensor:
    """This rank's part of x, which every rank has whole; differentiable.

    "ulysses" gives each rank one run of tokens. "allgather" and "ring" give it two chunks, one from
    the front of the sequence and one from its end, so that causal attention is as much work on each
    rank. Shard whatever belongs to tokens: x itself, targets, and positions, such as the rows of
    rotary tables or `torch.arange(seqlen)`.

    Args:
        x: with all tokens, the same on each rank.
        mesh: of one dimension.
        dim: which dimension of x counts tokens. Its length is a multiple of the mesh's size
            ("ulysses") or of twice that.
        mode: that of `attention`.

    Returns:
        x with this rank's tokens in `dim`. The gradient of x is whole on each rank.

    Raises:
        ValueError: a length that cannot be cut so, an unknown mode, a mesh of several dimensions.
        TypeError: a mesh that is none.

    Examples:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = dist.init_device_mesh("cpu", (1,))
        >>> shard(torch.arange(6), mesh, dim=0)
        tensor([0, 1, 2, 3, 4, 5])
        >>> dist.destroy_process_group()
    """
    ranks, balanced = ranks_of(mesh), checks.known(mode) != "ulysses"
    dim = checks.dim_of(x, dim)
    count = ranks.size * (2 if balanced else 1)
    if x.shape[dim] % count:
        raise ValueError(
            f"x has {x.shape[dim]} tokens in dim {dim}, accepted with mode={mode!r} on "
            f"{ranks.size} ranks: a multiple of {count}; pad the sequence"
        )
    return Shard.apply(x, ranks, dim, balanced)


def unshard(x: Tensor, mesh: DeviceMesh, dim: int, mode: str = "allgather") -> Tensor:
    """The inverse of `shard`: all tokens on each rank, in their order; differentiable.

    What follows is taken to be the same on each rank, such as a loss of the whole output: x gets
    its own tokens' part of the gradient, and nothing is added up.

    Args:
        x: this rank's tokens, as many as on any other rank.
        mesh: as in `shard`.
        dim: as in `shard`.
        mode: as in `shard`.

    Returns:
        x with all tokens in `dim`.

    Raises:
        ValueError: as `shard`; an odd number of own tokens where a rank holds two chunks.
        TypeError: as `shard`.

    Examples:
        >>> import torch.distributed as dist
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> mesh = dist.init_device_mesh("cpu", (1,))
        >>> unshard(shard(torch.arange(6), mesh, dim=0), mesh, dim=0)
        tensor([0, 1, 2, 3, 4, 5])
        >>> dist.destroy_process_group()
    """
    ranks, balanced = ranks_of(mesh), checks.known(mode) != "ulysses"
    dim = checks.dim_of(x, dim)
    if balanced and x.shape[dim] % 2:
        raise ValueError(f"x has {x.shape[dim]} tokens in dim {dim}, {checks.two_chunks(mode)}")
    return Unshard.apply(x, ranks, dim, balanced)
