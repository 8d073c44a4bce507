"""The ops of this build (torch.ops.diffattn): fake kernels, vmap and autocast over the C++ schemas.

The schemas are in csrc/bindings/schemas.cpp. q is (batch, seqlen_q, nheads, 2, d) here, k has 1 or
2 components, v is (batch, seqlen_k, nheads_k, dv) or in halves (.., nheads_k, 2, d), and λ is
expanded to (batch, seqlen_q, nheads); `functional` brings users' arguments into this form. With
cu_seqlens the first two dimensions are one. On the CPU the ops take groups of maps too, q (batch,
seqlen_q, groups, r + 1, d).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import groups
from ._ops import add_op_namespace_prefix
from ._ops import ops as kernels

OPS = ("fwd", "bwd", "decode", "components", "bwd_partial", "decode_components")
CACHES = ("k_cache", "v_cache", "k_stream", "v_stream")  # written in place
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def compute_dtype(q: Tensor) -> torch.dtype:
    """What is summed in, and the dtype of λ, the LSE and the norm weight: fp32, or q's fp64."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def width_of(v: Tensor, k: Tensor) -> int:
    """dv. V in halves, (.., nheads_k, 2, d), has as many dimensions as the ops' K."""
    return v.shape[-1] * (2 if v.dim() == k.dim() else 1)


def _statistics_shape(q: Tensor, packed: bool) -> tuple[int, ...]:
    """Of what has rows and heads as q: those of its statistics."""
    return (q.shape[1], q.shape[0]) if packed else (q.shape[0], q.shape[2], q.shape[1])


def head_major(lse: Tensor) -> Tensor:
    """(r + 1, .., groups, seqlen_q) as (.., groups, r + 1, seqlen_q), a view."""
    return lse.movedim(0, -2)


def sums_over_columns(x: Tensor) -> Tensor:
    """Of (.., seqlen_q, groups, r + 1, dv), as the ops have statistics: (r + 1, .., seqlen_q)."""
    return x.sum(-1).movedim(-1, 0).transpose(-1, -2)


def check_storage(name: str, t: Tensor) -> None:
    """That memory is there: FSDP frees it between uses, and torch crashes where it reads it then.

    The bindings ask the same of what reaches them; this is for what is cast or viewed before.
    """
    if type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return  # such as a compiler's: it has no memory
    try:
        if t.untyped_storage().nbytes() or not t.numel():
            return
    except RuntimeError:
        return  # torch.func's wrappers have no storage
    raise RuntimeError(
        f"{name} has a storage of 0 bytes, its shape {tuple(t.shape)} needs more: the storage was "
        "freed"
    )


def _on_one_device(q: Tensor, *others: Any) -> None:
    """A single meta tensor takes a call of real ones here, where nothing would be computed."""
    for t in others:
        if isinstance(t, Tensor) and t.device != q.device:
            raise RuntimeError(
                f"q is on device {q.device}, another tensor on {t.device}: move them to one"
            )


@torch.library.register_fake(add_op_namespace_prefix("fwd"))
def _fwd_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    norm_weight: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    window_left: int,
    window_right: int,
    sink_size: int,
    streaming_heads: int,
    norm_eps: float | None,
    out_scale: float,
    deterministic: bool,
    training: bool,
    softcap: float = 0.0,
) -> Outputs:
    _on_one_device(q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k)
    packed = cu_seqlens_q is not None
    out = q.new_empty((*groups.heads_of(q), width_of(v, k)))
    lse = q.new_empty((q.shape[-2], *_statistics_shape(q, packed)), dtype=compute_dtype(q))
    # What else backward needs, by device: see csrc/diffattn.h and docs/cpu.md.
    norm, cuda = training and norm_eps is not None, training and q.device.type == "cuda"
    o = torch.empty_like(out) if norm else q.new_empty(0)
    o2 = torch.empty_like(out) if cuda else q.new_empty(0)
    rstd = lse.new_empty(_statistics_shape(out, packed)) if norm else q.new_empty(0)
    return out, lse, o, o2, rstd


@torch.library.register_fake(add_op_namespace_prefix("bwd"))
def _bwd_fake(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam: Tensor,
    norm_weight: Tensor | None,
    *rest: Any,
) -> Outputs:
    _on_one_device(q, dout, dlse, k, v, lam, norm_weight, *rest)
    contiguous = torch.contiguous_format
    dq, dk, dv, dlam = (torch.empty_like(t, memory_format=contiguous) for t in (q, k, v, lam))
    dweight = q.new_empty(0) if norm_weight is None else torch.empty_like(norm_weight)
    return dq, dk, dv, dlam, dweight


@torch.library.register_fake(add_op_namespace_prefix("components"))
def _components_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    _on_one_device(q, k, v, cu_seqlens_q, cu_seqlens_k)
    o = q.new_empty((*q.shape[:-1], width_of(v, k)), dtype=compute_dtype(q))
    return o, o.new_empty((q.shape[-2], *_statistics_shape(q, cu_seqlens_q is not None)))


@torch.library.register_fake(add_op_namespace_prefix("bwd_partial"))
def _bwd_partial_fake(
    dout: Tensor, dlse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _on_one_device(q, dout, dlse, k, v, *rest)
    dq, dk, dv = (t.new_empty(t.shape, dtype=compute_dtype(q)) for t in (q, k, v))
    return dq, dk, dv


@torch.library.register_fake(add_op_namespace_prefix("decode_components"))
def _decode_components_fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    _on_one_device(q, k_cache, v_cache, *rest)
    o = q.new_empty((*q.shape[:-1], width_of(v_cache, k_cache)), dtype=compute_dtype(q))
    return o, o.new_empty((q.shape[-2], *_statistics_shape(q, False)))


@torch.library.register_fake(add_op_namespace_prefix("decode"))
def _decode_fake(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lam: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    _on_one_device(q, k_cache, v_cache, lam, *rest)
    out = q.new_empty((*groups.heads_of(q), width_of(v_cache, k_cache)))
    lse_shape = q.shape[-2], *_statistics_shape(q, False)
    return out, q.new_empty(lse_shape, dtype=compute_dtype(q))


def _refuse_vmap(info: Any, in_dims: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError(
        "differential attention does not work under torch.func.vmap: fold the mapped dimension "
        "into the batch"
    )


def _each_gradient(op: str, info: Any, in_dims: Any, *args: Any) -> tuple[Any, ...]:
    """One backward for each gradient of the output: what torch.func.jacrev maps over."""
    results = []
    for i in range(info.batch_size):
        one = (x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True))
        results.append(getattr(kernels, op)(*one))
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])


for _op in ("fwd", "decode", "components", "decode_components"):
    torch.library.register_vmap(add_op_namespace_prefix(_op), _refuse_vmap)
for _op in ("bwd", "bwd_partial"):
    torch.library.register_vmap(add_op_namespace_prefix(_op), partial(_each_gradient, _op))


def _register_autocast(op: str, device: str, cast_arguments: tuple[str, ...]) -> None:
    """Casts q, k, v as autocast casts a matmul's inputs; λ and the norm weight keep their digits.

    torch.library.register_autocast would cast λ too.
    """
    key = getattr(torch._C.DispatchKey, f"Autocast{device}")
    overload = getattr(kernels, op).default
    names = [argument.name for argument in overload._schema.arguments]
    places = [(name, names.index(name)) for name in cast_arguments]

    def autocast(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device.lower())
        cast = [*args]
        for name, i in places:
            cast[i] = _cast(name, args[i], dtype)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return overload(*cast)

    library.impl(op, autocast, f"Autocast{device}")


def _cast(name: str, arg: Any, dtype: torch.dtype) -> Any:
    eligible = isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
    if not eligible or arg.dtype == dtype:
        return arg
    return _copied(name, arg, lambda once: once.to(dtype))


def _copied(name: str, t: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy in which what is expanded stays so.

    Else it would take memory for every repetition before the kernels have checked the shape, and K
    that both components share would look like two.
    """
    check_storage(name, t)
    once = t
    for dim, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        if stride == 0 and size > 1:
            once = once.narrow(dim, 0, 1)
    return copy(once).expand(t.shape)


def refuse_lazy_cache(name: str, cache: Tensor) -> None:
    if cache.is_neg() or cache.is_conj():
        raise ValueError(
            f"{name} is a lazy negative or conjugate view, which cannot be written in place: "
            "give its resolve_neg() or resolve_conj()"
        )


def _register_lazy_views(op: str) -> None:
    """Lazy negatives are negated and conjugates refused: torch would copy them whole, unchecked."""
    overload = getattr(kernels, op).default
    names = [argument.name for argument in overload._schema.arguments]

    def negative(keyset: Any, *args: Any) -> Any:
        return overload.redispatch(
            keyset.remove(torch._C.DispatchKey.Negative), *map(_negated, names, args)
        )

    def conjugate(*args: Any) -> NoReturn:
        lazy = zip(names, args, strict=False)  # what is at its default is left out
        which = [name for name, t in lazy if isinstance(t, Tensor) and t.is_conj()]
        raise TypeError(f"{' and '.join(which)} is complex, accepted: tensors of real numbers")

    library.impl(op, negative, "Negative", with_keyset=True)
    library.impl(op, conjugate, "Conjugate")


def _negated(name: str, arg: Any) -> Any:
    if not isinstance(arg, Tensor) or not arg.is_neg():
        return arg
    if name in CACHES:
        refuse_lazy_cache(name, arg)
    return _copied(name, arg, Tensor.resolve_neg)


library = torch.library.Library(add_op_namespace_prefix("").removesuffix("::"), "IMPL")

for _op in OPS:
    _register_lazy_views(_op)

for _device in ("CPU", "CUDA"):
    for _op in ("fwd", "components"):
        _register_autocast(_op, _device, ("q", "k", "v"))
    for _op in ("decode", "decode_components"):
        _register_autocast(_op, _device, ("q", "k", "v", "rotary_cos", "rotary_sin"))
