"""From the arguments of the public functions to those of the ops: checks, numbers, views.

A wrong argument raises ValueError or TypeError that names it, says what it was and what is
accepted. What depends on the kernels (dtypes, head dims, shapes) is checked in csrc/bindings.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import groups, ops

Lambda = float | Tensor
Window = tuple[int, int]
Heads = Sequence[bool] | Tensor | None

ALL_STREAM = -1  # of streaming_heads as bits: every KV head, however many
MOST_STREAMING = 64  # KV heads that can be told apart
UNBOUNDED = 2**62  # a window that is wider than any sequence; int64 sums with it do not overflow

_INTEGERS = (int, torch.SymInt)
_NUMBERS = (float, *_INTEGERS, torch.SymFloat)


def check_tensors(q: Tensor, **others: Any) -> None:
    """Kinds, devices, memory; None passes, and so do numbers for the arguments that may be one.

    Asked first: meta tensors would take the call to the fake kernels, which check nothing, and the
    dispatcher's own message for sparse or quantized tensors names no argument.
    """
    require_dense("q", q)
    device = q.device
    for name, t in others.items():
        if t is None or (name in ("lam", "cache_seqlens") and not isinstance(t, Tensor)):
            continue
        require_dense(name, t)
        if t.device != device:
            raise ValueError(
                f"{name} is on device {t.device}, q is on {device}: all must be on one device"
            )
    refuse_tangents((q, *others.values()))


def refuse_tangents(tensors: Iterable[Any]) -> None:
    """Before any of them is viewed, which fails inside torch for some tangents.

    What is not strided passes: it has no tangent that could be unpacked, and is refused elsewhere.
    """
    if forward_ad._current_level < 0:
        return
    dense = (t for t in tensors if isinstance(t, Tensor) and t.layout == torch.strided)
    if any(forward_ad.unpack_dual(t).tangent is not None for t in dense):
        raise NotImplementedError(
            "differential attention has no forward-mode derivative (torch.func.jvp, jacfwd, "
            "forward_ad.make_dual): use reverse mode (torch.func.vjp, jacrev, backward())"
        )


def require_tensor(name: str, t: object) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is {type(t).__name__}, expected a tensor")


def require_dense(name: str, t: Tensor) -> None:
    """A tensor of numbers in memory, one behind another."""
    require_tensor(name, t)
    if t.layout != torch.strided or t.is_nested or t.is_quantized:
        kind = "nested" if t.is_nested else "quantized" if t.is_quantized else str(t.layout)
        raise TypeError(f"{name} is a {kind} tensor, accepted: dense (strided) tensors")
    if not torch.compiler.is_compiling():
        ops.check_storage(name, t)


def readable(name: str, value: Any) -> Any:
    """The value. A tensor in a number's place needs its memory, because Python reads it."""
    if isinstance(value, Tensor):
        require_dense(name, value)
    return value


def shown(value: Any) -> str:
    """For a message: repr(), which would read a tensor's memory, and that may be freed."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
        return f"({', '.join(map(shown, value))})"
    return repr(value)


def query_heads(q: Tensor, name: str, dims: int) -> Tensor:
    """(.., 2·nheads, d) as (.., nheads, 2, d), a view; `dims` counts those of the latter."""
    if q.dim() == dims:
        groups.check_maps(name, q)
        return q
    if q.dim() != dims - 1 or q.shape[-2] % 2:
        raise ValueError(
            f"{name} has shape {tuple(q.shape)}, expected {dims - 1} dimensions (.., 2·nheads, "
            f"headdim) with an even number of heads, or {dims} dimensions (.., groups, r + 1, "
            "headdim)"
        )
    return q.unflatten(-2, (q.shape[-2] // 2, 2))


def key_heads(k: Tensor, v: Tensor, k_name: str, v_name: str, dims: int) -> Tensor:
    """k with a component dimension: 2, or 1 where k has as many heads as v (DIFF V2)."""
    require_tensor(k_name, k)
    require_tensor(v_name, v)
    if v.dim() != dims and (v.dim() != dims + 1 or v.shape[-2] != 2):
        raise ValueError(
            f"{v_name} has shape {tuple(v.shape)}, expected {dims} dimensions (.., nheads_k, "
            f"headdim_v), or its halves, {dims + 1} dimensions (.., nheads_k, 2, headdim)"
        )
    if k.dim() == dims + 1:
        return k
    nheads_k = v.shape[dims - 2]
    if k.dim() == dims and k.shape[-2] == 2 * nheads_k:
        return k.unflatten(-2, (nheads_k, 2))
    if k.dim() == dims and k.shape[-2] == nheads_k:
        return k.unsqueeze(-2)
    raise ValueError(
        f"{k_name} has shape {tuple(k.shape)}, expected (.., {2 * nheads_k}, headdim), or (.., "
        f"{nheads_k}, headdim) where both components share K, for {v_name}'s {nheads_k} heads; or "
        f"{dims + 1} dimensions (.., {nheads_k}, 1 or 2, headdim)"
    )


def components_asked(
    return_components: bool,
    return_lse: bool,
    norm_weight: Tensor | None,
    norm_eps: float | None,
    out_scale: float,
) -> bool:
    """Whether each map's own result is returned. Norm and scale are then another function's."""
    if not flag("return_components", return_components):
        return False
    if return_lse:
        raise ValueError(
            "return_lse and return_components were both given: return_components returns the LSE "
            "too, (.., nheads, 2, seqlen_q)"
        )
    for name, given in (
        ("norm_weight", norm_weight is not None),
        ("norm_eps", norm_eps is not None),
        ("out_scale", isinstance(out_scale, Tensor) or out_scale != 1),
    ):
        if given:
            raise ValueError(
                f"{name} was given with return_components=True, which has no norm and no scale: "
                f"give {name} to combine_components"
            )
    return True


def expand_lambda(lam: Lambda | None, q: Tensor) -> Tensor:
    """λ for each token and signal map, (batch, seqlen_q, groups·r).

    Its numbers are copied only where it has one for each group.
    """
    dtype, per_token, r = ops.compute_dtype(q), groups.heads_of(q), groups.signals_of(q)
    if isinstance(lam, Tensor):
        if lam.dtype not in (dtype, q.dtype, torch.float32):
            raise TypeError(f"lam has dtype {lam.dtype}, accepted: {torch.float32} or {q.dtype}")
        if r > 1 and lam.shape == q.shape[:-2]:
            lam = lam.repeat_interleave(r, -1)
        if lam.shape not in ((), per_token[-1:], per_token):
            heads, per_group = "nheads", ""
            if r > 1:
                heads = "groups·r"
                per_group = f", or one for each token and group = {tuple(q.shape[:-2])}"
            raise ValueError(
                f"lam has shape {tuple(lam.shape)}, accepted: (), ({heads},) = "
                f"({per_token[-1]},), or one for each token and head = {per_token}{per_group}"
            )
        return (lam if lam.dtype == dtype else lam.to(dtype)).expand(per_token)
    number = _number("lam", lam, "a number or a tensor")
    if torch.compiler.is_compiling():
        # A sum with a tensor keeps a number dynamic; torch.full would make it a constant of the
        # graph, and see `static_number`.
        return (torch.zeros((), dtype=dtype, device=q.device) + number).expand(per_token)
    try:
        return torch.full((), number, dtype=dtype, device=q.device).expand(per_token)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ValueError(f"lam is {lam!r}, accepted: what {dtype} can hold") from None


def epilogue(
    norm_weight: Tensor | None,
    norm_eps: float | None,
    out_scale: float,
    q: Tensor,
    headdim_v: int,
) -> tuple[Tensor | None, float | None, float]:
    """(norm_weight, norm_eps, out_scale) as the ops take them."""
    if norm_weight is not None:
        if norm_eps is None:
            raise ValueError("norm_weight was given without norm_eps, which switches the norm on")
        if not norm_weight.is_floating_point():
            raise TypeError(f"norm_weight has dtype {norm_weight.dtype}, accepted: floating point")
        if norm_weight.dim() != 1 or norm_weight.shape[0] != headdim_v:
            shape = ", ".join(map(str, norm_weight.shape))
            raise ValueError(
                f"norm_weight has shape ({shape}), expected (headdim_v,) = ({headdim_v})"
            )
        norm_weight = norm_weight.to(ops.compute_dtype(q))
    if norm_eps is None:
        return None, None, static_number("out_scale", out_scale, "a number")
    norm_eps = static_number("norm_eps", norm_eps, "None or a number >= 0")
    scale = _number("out_scale", out_scale, "a number")
    if torch.compiler.is_compiling() and not _is_static(scale):
        # Layers that differ in out_scale, such as 1 − λ_init, then share one compiled graph.
        if norm_weight is None:
            norm_weight = torch.ones(headdim_v, dtype=ops.compute_dtype(q), device=q.device)
        return norm_weight * scale, norm_eps, 1.0
    return norm_weight, norm_eps, static_number("out_scale", scale, "a number")


def static_number(name: str, value: float, accepted: str) -> float:
    """A float; under torch.compile a constant of the graph that the compiler traces first.

    Left dynamic, it would become a constant only behind the key of torch's AOTAutograd cache, which
    then gives one graph to every value: https://github.com/pytorch/pytorch/issues/197889.
    """
    number = _number(name, value, accepted)
    if torch.compiler.is_compiling():
        number = torch.fx.experimental.symbolic_shapes.guard_scalar(number)
    return float(number)


def _is_static(number: float) -> bool:
    return torch.fx.experimental.symbolic_shapes.has_static_value(number)


def softmax_scale_of(softmax_scale: float | None, q: Tensor) -> float:
    if softmax_scale is None:
        # An empty head is refused by the kernels' checks, not by the power.
        return float((q.shape[-1] or 1) ** -0.5)
    scale = static_number("softmax_scale", softmax_scale, "None (1/√headdim) or a number")
    if scale == 0:
        raise ValueError(
            "softmax_scale is 0, with which no output depends on q and k; accepted: None "
            "(1/√headdim) or another number (flash-attn's dropout_p, which has this place there, "
            "does not exist here)"
        )
    return scale


def mask_of(
    window_size: Window,
    causal: bool,
    sink_size: int,
    streaming_heads: Heads,
    nheads_k: int,
) -> tuple[int, int, int, int]:
    """The mask as the ops take it: (left, right, sink_size, a bit for each head that streams)."""
    causal = flag("causal", causal)
    left, right = window_of(window_size)
    right = 0 if causal else right
    sink, heads = _sink_of(sink_size), _bits_of(streaming_heads, nheads_k)
    for name, value, unused in (("sink_size", sink, 0), ("streaming_heads", heads, ALL_STREAM)):
        if value != unused and not causal:
            raise ValueError(f"{name} was given with causal=False, accepted: causal=True")
    if left < 0 or heads == 0:  # no head has a window, so each sees what causality allows
        return -1, right, 0, ALL_STREAM
    return left, right, sink, heads


def _sink_of(sink_size: Any) -> int:
    if isinstance(sink_size, Tensor):
        raise TypeError(
            "sink_size is a tensor, accepted: an integer, how many of a sequence's first keys stay "
            "visible. It is not a learned sink logit in the softmax's denominator: in differential "
            "attention λ does what that would do"
        )
    sink = integer("sink_size", sink_size, "an integer >= 0")
    if sink < 0:
        raise ValueError(f"sink_size is {sink}, accepted: an integer >= 0")
    return min(sink, UNBOUNDED)


def _bits_of(streaming_heads: Heads, nheads_k: int) -> int:
    """int64 with bit h set where KV head h streams."""
    if streaming_heads is None:
        return ALL_STREAM
    streams = heads_of(streaming_heads, nheads_k)
    if all(streams):
        return ALL_STREAM
    bits = sum(1 << head for head, streaming in enumerate(streams) if streaming)
    return bits - 2**64 if bits >= 2**63 else bits


def heads_of(streaming_heads: Heads, nheads_k: int) -> list[bool]:
    """Whether each KV head streams."""
    if streaming_heads is None:
        return [True] * nheads_k
    accepted = f"None, or a bool for each of the {nheads_k} KV heads"
    heads: Any = streaming_heads
    if isinstance(heads, Tensor):
        if heads.device.type != "cpu":
            raise ValueError(
                f"streaming_heads is on device {heads.device}, where reading it would wait for the "
                f"device; accepted: {accepted}, in a sequence or a CPU tensor"
            )
        heads = readable("streaming_heads", heads).tolist()
    try:
        streams = [flag("streaming_heads[i]", head) for head in heads]
    except TypeError:
        raise TypeError(
            f"streaming_heads is {shown(streaming_heads)}, accepted: {accepted}"
        ) from None
    if len(streams) != nheads_k:
        raise ValueError(f"streaming_heads has {len(streams)} entries, accepted: {accepted}")
    if nheads_k > MOST_STREAMING:
        raise ValueError(
            f"streaming_heads is given for {nheads_k} KV heads, accepted: up to {MOST_STREAMING}"
        )
    return streams


def window_of(window_size: Window) -> Window:
    """(left, right) as integers, −1 unbounded."""
    try:
        left, right = (operator.index(_no_bool(readable("window_size", n))) for n in window_size)
    except (TypeError, ValueError):
        raise ValueError(
            f"window_size is {shown(window_size)}, expected two integers (left, right), -1 "
            "unbounded"
        ) from None
    if left < -1 or right < -1:
        raise ValueError(
            f"window_size is {window_size!r}, accepted on each side: a number of keys, or -1 for "
            "unbounded"
        )
    return -1 if left >= UNBOUNDED else left, -1 if right >= UNBOUNDED else right


def _no_bool(value: Any) -> Any:
    """None for True and False, which Python takes for 1 and 0."""
    return None if isinstance(value, bool) else value


def flag(name: str, value: object) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_", "SymBool"):
        return bool(value)  # the names are numpy's, and that of a compiler's symbol
    raise TypeError(f"{name} is {shown(value)}, accepted: True or False")


def integer(name: str, value: Any, accepted: str = "an integer") -> int:
    number: Any = readable(name, value)
    if isinstance(value, bool) or not isinstance(value, _INTEGERS):
        try:
            number = operator.index(_no_bool(value))
        except (TypeError, RuntimeError):  # the latter of a meta tensor
            raise TypeError(
                f"{name} is {shown(value)} ({type(value).__name__}), accepted: {accepted}"
            ) from None
    if not torch.compiler.is_compiling() and not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} is {number}, accepted: integers of 64 bits")
    return number


def seqlens_of(cache_seqlens: object, q: Tensor, of_caches: Tensor) -> Tensor | None:
    """int32 (batch,); `of_caches` has an entry per sequence too, or the op refuses the call."""
    if cache_seqlens is None or isinstance(cache_seqlens, Tensor) and cache_seqlens.dim():
        return cache_seqlens
    accepted = f"None, an int, or an int32 tensor (batch,) = ({q.shape[0]},)"
    if isinstance(cache_seqlens, Tensor):
        raise ValueError(f"cache_seqlens has shape (), accepted: {accepted}")
    number = integer("cache_seqlens", cache_seqlens, accepted)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"cache_seqlens is {number}, accepted: 0 to what the cache holds")
    batch = q.shape[0]
    if not torch.compiler.is_compiling():
        batch = min(batch, of_caches.shape[0])  # no memory for a batch that the op will refuse
    return torch.full((batch,), number, dtype=torch.int32, device=q.device)


def _number(name: str, value: Any, accepted: str) -> Any:
    """What float() takes, except bools and strings; a compiler's symbol stays a symbol."""
    if isinstance(value, _NUMBERS):
        if not isinstance(value, bool):
            return value
    elif isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} requires a gradient, but has none; accepted: {accepted}")
    elif not isinstance(value, str | bytes):
        readable(name, value)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass  # refused below, by name
    raise TypeError(f"{name} is {shown(value)} ({type(value).__name__}), accepted: {accepted}")
