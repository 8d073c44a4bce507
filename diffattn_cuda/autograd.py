"""Autograd of the ops, registered with the dispatcher: gradients, and what has none.

Reverse mode works with backward() and under torch.func (grad, vjp, jacrev). Forward mode and double
backward are errors. `torch.library.register_autograd` refuses torch.func and says nothing of
forward mode, whose tangents would be dropped: derivatives of zero. Decoding has no gradient, but
it writes to the caches, and autograd has to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import arguments, groups, ops

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
_OPS = {op: getattr(ops.kernels, op).default for op in ops.OPS}
# What of decoding could have a gradient.
_DIFFERENTIABLE = ("q", "k_cache", "v_cache", "lam", "k", "v", "rotary_cos", "rotary_sin",
                   "norm_weight", "k_stream", "v_stream")  # fmt: skip


def _places(op: str, *names: str) -> dict[str, int]:
    """Where its arguments of these names stand."""
    order = [argument.name for argument in _OPS[op]._schema.arguments]
    return {name: order.index(name) for name in names if name in order}


_OF_DECODE = _places("decode", *_DIFFERENTIABLE)
_OF_DECODE_COMPONENTS = _places("decode_components", *_DIFFERENTIABLE)
_TRAINING = _places("fwd", "training")["training"]


class _Forward(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *inputs: Any) -> Outputs:
        q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, *options = inputs[:_TRAINING]
        capped = inputs[_TRAINING + 1 :]  # the cap, which the dispatcher leaves out if it is 0
        # `training` is always true here, because what backward needs has to be kept.
        output: Outputs = _recorded("fwd", keyset, (*inputs[:_TRAINING], True, *capped))
        out, lse, o, o2, rstd = output
        if _is_absent(o) and not _is_absent(o2):
            o = out  # this backward needs O, which is the output where there is no norm
        ctx.save_for_backward(
            q, k, v, lam, norm_weight, o, o2, lse, rstd, cu_seqlens_q, cu_seqlens_k
        )
        ctx.options = *options, *capped
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2], o2, rstd)
        return output

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, *_: Any) -> tuple[Any, ...]:
        q, k, v, lam, norm_weight, o, o2, lse, rstd, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
        if dout is None:
            dout = q.new_zeros((*groups.heads_of(q), ops.width_of(v, k)))
        dq, dk, dv, dlam, weight_gradient = ops.kernels.bwd(
            dout, dlse, q, k, v, lam, norm_weight, o, o2, lse, rstd, cu_seqlens_q, cu_seqlens_k,
            *ctx.options,
        )  # fmt: skip
        dweight = None if norm_weight is None else weight_gradient
        gradients = (None, dq, dk, dv, dlam, dweight)
        return *gradients, *(None for _ in ctx.needs_input_grad[len(gradients) :])


class _Components(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        q, k, v, cu_seqlens_q, cu_seqlens_k, *options = inputs
        output: tuple[Tensor, Tensor] = _recorded("components", keyset, inputs)
        ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, do: Tensor | None, dlse: Tensor | None) -> tuple[Any, ...]:
        q, k, v, o, lse, *packing = ctx.saved_tensors
        do = torch.zeros_like(o) if do is None else do
        gradients = gradients_of_components(do, dlse, q, k, v, o, lse, *packing, *ctx.options)
        return None, *(x.to(q.dtype) for x in gradients), *(None for _ in ctx.needs_input_grad[4:])


class _Backward(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keyset: Any, op: str, *inputs: Any) -> Any:
        return _recorded(op, keyset, inputs)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(
            "differential attention has no double backward: its gradients' own gradients"
        )


def gradients_of_components(
    do: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv in fp32 (fp64 for fp64), from those of the components' op's results.

    Each map has a gradient of its own, so the kernel runs once for the signals' and once for the
    noise's, on problems of pairs whose two maps are both this one, with λ = 0: the second map adds
    nothing, and the CPU leaves it out.
    """
    do, r = do.to(q.dtype), groups.signals_of(q)
    less_d = -ops.sums_over_columns(do.to(o.dtype) * o)
    dlse = less_d if dlse is None else dlse + less_d  # (r + 1, .., groups, seqlen_q)
    of_maps = []
    for these, k_map in ((slice(0, r), slice(0, 1)), (slice(r, r + 1), slice(1, 2))):
        heads = q[..., these, :].flatten(-3, -2)  # (.., heads, d): a head for each map
        of_heads, lse_of_heads = (
            x[these].movedim(0, -2).flatten(-3, -2)[None] for x in (dlse, lse)
        )  # (1, .., heads, seqlen_q)
        dq_of_heads, *of_keys = ops.kernels.bwd_partial(
            do[..., these, :].flatten(-3, -2),
            torch.cat((of_heads, torch.zeros_like(of_heads))),
            heads[..., None, :].expand(*heads.shape[:-1], 2, -1),
            k if k.shape[-2] == 1 else k[..., k_map, :],
            v,
            q.new_zeros((), dtype=o.dtype).expand(heads.shape[:-1]),
            torch.cat((lse_of_heads, lse_of_heads)),
            cu_seqlens_q,
            cu_seqlens_k,
            *options,
        )
        of_maps.append((dq_of_heads[..., 0, :].unflatten(-2, (q.shape[-3], -1)), *of_keys))
    (dq_signal, dk_signal, dv_signal), (dq_noise, dk_noise, dv_noise) = of_maps
    dq = torch.cat((dq_signal, dq_noise), -2)
    shared = k.shape[-2] == 1
    dk = dk_signal + dk_noise if shared else torch.cat((dk_signal, dk_noise), -2)
    return dq, dk, dv_signal + dv_noise


def _is_absent(saved: Tensor) -> bool:
    """Backward on this device does not need it: an empty vector stands for it."""
    return saved.dim() == 1


def _fwd(keyset: Any, *args: Any) -> Any:
    if _has_gradient(args[:5]):
        return _record(_Forward, keyset, args)
    return _below_autograd("fwd", keyset, args)


def _bwd(keyset: Any, *args: Any) -> Any:
    if _has_gradient(args[:11]):
        return _record(_Backward, keyset, ("bwd", *args))
    return _below_autograd("bwd", keyset, args)


def _components(keyset: Any, *args: Any) -> Any:
    if _has_gradient(args[:3]):
        return _record(_Components, keyset, args)
    return _below_autograd("components", keyset, args)


def _bwd_partial(keyset: Any, *args: Any) -> Any:
    if _has_gradient(args[:7]):
        return _record(_Backward, keyset, ("bwd_partial", *args))
    return _below_autograd("bwd_partial", keyset, args)


def decode(*args: Any) -> Any:
    """The op; a call from Python takes its checks first, which saves 7 µs."""
    return _decoded(ops.kernels.decode, _OF_DECODE, args)


def decode_components(*args: Any) -> Any:
    """The same for decode_components."""
    return _decoded(ops.kernels.decode_components, _OF_DECODE_COMPONENTS, args)


def _decoded(op: Any, places: dict[str, int], args: tuple[Any, ...]) -> Any:
    if torch.compiler.is_compiling():
        return op(*args)
    _check_decode(args, places)
    with torch._C._AutoDispatchBelowADInplaceOrView():
        return op(*args)


def _decode(keyset: Any, *args: Any) -> Any:
    _check_decode(args, _OF_DECODE)
    keyset &= torch._C._after_ADInplaceOrView_keyset
    return _OPS["decode"].redispatch(keyset, *args)


def _decode_components(keyset: Any, *args: Any) -> Any:
    _check_decode(args, _OF_DECODE_COMPONENTS)
    keyset &= torch._C._after_ADInplaceOrView_keyset
    return _OPS["decode_components"].redispatch(keyset, *args)


def _check_decode(args: tuple[Any, ...], places: dict[str, int]) -> None:
    # The dispatcher leaves out what is at its default.
    given = {name: args[place] if place < len(args) else None for name, place in places.items()}
    tensors = [*given.values()]
    if _has_gradient(tensors):
        named = given.items()
        which = ", ".join(name for name, t in named if t is not None and t.requires_grad)
        raise RuntimeError(
            f"diff_flash_attn_with_kvcache has no gradient, but one is required of {which}: call "
            "it under torch.no_grad(), or use diff_flash_attn_func for training"
        )
    for name in ops.CACHES:
        cache = given[name]
        if cache is None:
            continue  # there is no ring, or the bindings refuse it
        ops.refuse_lazy_cache(name, cache)
        if given["k"] is not None:
            _note_write(name, cache)


def _note_write(name: str, cache: Tensor) -> None:
    """Autograd has to learn that what it may have saved of the cache is no longer there."""
    if cache.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{name} is an inference tensor, which only code under torch.inference_mode() may "
            "append to: decode under it, or allocate the cache outside it"
        )
    torch.autograd.graph.increment_version(cache)


def _has_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether reverse mode has to be recorded; forward mode is an error."""
    arguments.refuse_tangents(tensors)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _record(function: type[_SingleLevelFunction], keyset: Any, args: tuple[Any, ...]) -> Any:
    """Adds a node to the graph of the innermost transform of torch.func, if any is active.

    The transform has wrapped the tensors already. It hands the op to the next one when the op is
    dispatched again, below autograd: so an autograd.Function, which spans all levels and asks for
    a setup_context, is not what is wanted here.
    """
    if not torch._C._are_functorch_transforms_active():
        return function.apply(keyset, *args)  # type: ignore[attr-defined]
    with enable_single_level_autograd_function():
        return function.apply(keyset, *args)  # type: ignore[attr-defined]


def _recorded(op: str, keyset: Any, args: tuple[Any, ...]) -> Any:
    """What a node's forward computes."""
    if not torch._C._are_functorch_transforms_active():
        return _below_autograd(op, keyset, args)
    # apply() has switched gradients off, which the next transform wants on.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        return _below_autograd(op, keyset, args)


def _below_autograd(op: str, keyset: Any, args: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return _OPS[op].redispatch(keyset & torch._C._after_autograd_keyset, *args)


ops.library.impl("fwd", _fwd, "Autograd", with_keyset=True)
ops.library.impl("bwd", _bwd, "Autograd", with_keyset=True)
ops.library.impl("components", _components, "Autograd", with_keyset=True)
ops.library.impl("bwd_partial", _bwd_partial, "Autograd", with_keyset=True)
# Unlike Autograd, this key is also met by tensors made under inference mode, outside it.
ops.library.impl("decode", _decode, "ADInplaceOrView", with_keyset=True)
ops.library.impl("decode_components", _decode_components, "ADInplaceOrView", with_keyset=True)
