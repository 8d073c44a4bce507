"""Makes a call of hostile.py, by the package and by the reference, in the context it asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import hostile_parts
import torch
from hostile_calls import Arguments, Call, is_healthy
from hostile_targets import MODULES, PUBLIC
from torch import Tensor
from torch.autograd import forward_ad

from diffattn_cuda import reference

Answer = dict[str, Tensor | None]  # "out", "lse", "dq", ...; a tangent may be missing
Function = Callable[..., Any]


def ours(call: Call) -> Answer:
    if call.target in MODULES:
        return _in_context(call, _module(call, "fused"), call.args)
    if call.target in PUBLIC:
        return _in_context(call, PUBLIC[call.target][0], call.args)
    return _in_context(call, getattr(torch.ops.diffattn, call.target[4:]), call.args)


def expected(call: Call, args: Arguments) -> Answer:
    """What the reference makes of `args`, those of the call in another dtype."""
    if call.target in MODULES:
        function = _module(call, "eager")
    elif call.target in PUBLIC:
        function = PUBLIC[call.target][1]
    else:
        function = RAW[call.target]
    if call.context in ("thread", "two threads"):
        return _plainly(call, function, args)
    return _in_context(call, function, args)


NAMES = {"raw bwd": ("dq", "dk", "dv", "dlam", "dnorm_weight"), **hostile_parts.NAMES}


def _named(call: Call, result: Any) -> Answer:
    names = NAMES.get(call.target, ("out", "lse"))
    results = result if isinstance(result, tuple) else (result,)
    return dict(zip(names, results, strict=False))


def _in_context(call: Call, function: Function, args: Arguments) -> Answer:
    return CONTEXTS[call.context](call, function, args)


def _plainly(call: Call, function: Function, args: Arguments) -> Answer:
    return _named(call, function(**args))


def _under(enter: Callable[[], Any]) -> Callable[[Call, Function, Arguments], Answer]:
    def run(call: Call, function: Function, args: Arguments) -> Answer:
        with enter():
            return _plainly(call, function, args)

    return run


def _in_a_thread(call: Call, function: Function, args: Arguments) -> Answer:
    caught: list[Any] = []

    def target() -> None:
        try:
            caught.append(_plainly(call, function, args))
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if isinstance(caught[0], BaseException):
        raise caught[0]
    return caught[0]


def _with_two_threads(call: Call, function: Function, args: Arguments) -> Answer:
    torch.set_num_threads(2)
    try:
        return _plainly(call, function, args)
    finally:
        torch.set_num_threads(1)


def _with_default_dtype(call: Call, function: Function, args: Arguments) -> Answer:
    torch.set_default_dtype(torch.float64)
    try:
        return _plainly(call, function, args)
    finally:
        torch.set_default_dtype(torch.float32)


def _of_inference_tensors(call: Call, function: Function, args: Arguments) -> Answer:
    with torch.inference_mode():
        inside = {name: _copy(arg) for name, arg in args.items()}
    return _plainly(call, function, inside)


def _copy(arg: Any) -> Any:
    return arg.clone() if isinstance(arg, Tensor) and is_healthy(arg) else arg


def _differentiated(call: Call, args: Arguments) -> tuple[str, Tensor] | None:
    """The argument that derivatives are taken of."""
    name = next((n for n in ("q", "x") if n in args), None)
    if name is None or not isinstance(args[name], Tensor) or not is_healthy(args[name]):
        return None
    return (name, args[name]) if args[name].is_floating_point() else None


Transform = Callable[[Callable[[Tensor], Tensor], Tensor], Answer]


def _derived(transform: Transform) -> Callable[[Call, Function, Arguments], Answer]:
    """Runs a transform of the output as a function of q or x."""

    def run(call: Call, function: Function, args: Arguments) -> Answer:
        found = _differentiated(call, args)
        if found is None:
            return _plainly(call, function, args)
        name, x = found

        def output(x: Tensor) -> Tensor:
            result = function(**args | {name: x})
            return result[0] if isinstance(result, tuple) else result

        return transform(output, x)

    return run


def _backward(output: Callable[[Tensor], Tensor], x: Tensor) -> Answer:
    x = x.detach().requires_grad_()
    out = output(x)
    if not out.requires_grad:  # decoding of modules: under no_grad
        return {"out": out}
    out.sum().backward()
    return {"out": out.detach(), "grad": x.grad}


def _jvp(output: Callable[[Tensor], Tensor], x: Tensor) -> Answer:
    out, tangent, *_ = torch.func.jvp(output, (x,), (torch.ones_like(x),))
    return {"out": out, "tangent": tangent}


def _dual(output: Callable[[Tensor], Tensor], x: Tensor) -> Answer:
    with forward_ad.dual_level():
        out, tangent = forward_ad.unpack_dual(output(forward_ad.make_dual(x, torch.ones_like(x))))
    return {"out": out, "tangent": tangent}


def _grad(output: Callable[[Tensor], Tensor], x: Tensor) -> Answer:
    return {"grad": torch.func.grad(lambda x: output(x).sum())(x)}


def _vmap(output: Callable[[Tensor], Tensor], x: Tensor) -> Answer:
    return {"out": torch.func.vmap(output)(torch.stack([x, x]))}


CONTEXTS: dict[str, Callable[[Call, Function, Arguments], Answer]] = {
    "plain": _plainly,
    "no_grad": _under(torch.no_grad),
    "inference mode": _under(torch.inference_mode),
    "inference tensors": _of_inference_tensors,
    "autocast": _under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "default device": _under(lambda: torch.device("meta")),
    "default dtype": _with_default_dtype,
    "thread": _in_a_thread,
    "two threads": _with_two_threads,
    "backward": _derived(_backward),
    "jvp": _derived(_jvp),
    "dual": _derived(_dual),
    "grad": _derived(_grad),
    "vmap": _derived(_vmap),
}
HARMLESS = {"plain", "no_grad", "inference mode", "default device", "default dtype", "thread",
            "two threads"}  # fmt: skip


def _module(call: Call, implementation: str) -> Function:
    """The module's constructor and its forward as one function of all arguments."""

    def run(**args: Any) -> Tensor:
        inputs = {name: args.pop(name, None) for name in ("cos", "sin", "k_cache", "v_cache")}
        x, seqlens = args.pop("x", None), args.pop("seqlens", None)
        torch.manual_seed(0)
        attention = MODULES[call.target](**args, implementation=implementation, device="cpu")
        if implementation == "eager":
            _to_double(attention)
        rel_pos = None if inputs["cos"] is None else (inputs["cos"], inputs["sin"])
        cache = None
        if inputs["k_cache"] is not None:
            cache = attention.make_cache(1, 1)
            cache.k, cache.v = inputs["k_cache"], inputs["v_cache"]
            if seqlens is not None:
                cache.seqlens = seqlens
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            return attention(x, rel_pos, cache)

    return run


def _to_double(module: torch.nn.Module) -> None:
    """As module.double(), whose writes to .data a transform of torch.func forbids."""
    for part in module.modules():
        for name, own in part.named_parameters(recurse=False):
            setattr(part, name, torch.nn.Parameter(own.detach().double()))


FLAGS = ("deterministic", "training", "rotary_interleaved")


def _as_the_schema(args: Arguments) -> Arguments:
    """Of True for a number an op learns no more than 1: so torch converts it."""
    bools = {n: x for n, x in args.items() if type(x).__name__ in ("bool", "bool_")}
    numbers = {n: int(x) for n, x in bools.items() if n not in FLAGS}
    return args | numbers


def _mask(a: Arguments) -> Arguments:
    """An op's mask as the functions take it: a bit of streaming_heads is a KV head.

    A head that does not stream has no window, but what lies right of the diagonal it does not see.
    """
    values = [a["v"]] if "v_cache" not in a else [a["v_cache"], a.get("v_stream")]
    heads = sum(t.shape[-2] for t in values if t is not None)
    names = "window_left", "window_right", "sink_size", "streaming_heads"
    left, right, sink, bits = (int(a[name]) for name in names)  # of 0.5 an op learns 0
    streams = [bool(bits >> head & 1) for head in range(heads)]
    return {"window_size": (left, right), "causal": right == 0, "sink_size": sink,
            "streaming_heads": streams}  # fmt: skip


def raw_fwd(**a: Any) -> Any:
    a = _as_the_schema(a)
    names = "softmax_scale", "norm_weight", "norm_eps", "out_scale", "softcap"
    shared = {name: a[name] for name in names if name in a}
    shared |= {"return_lse" if "lam" in a else "return_components": True, **_mask(a)}
    qkv = a["q"], a["k"], a["v"], a.get("lam")
    if a["cu_seqlens_q"] is None:
        return reference.diff_flash_attn_func(*qkv, **shared)
    packing = a["cu_seqlens_q"], a["cu_seqlens_k"], a["max_seqlen_q"], a["max_seqlen_k"]
    return reference.diff_flash_attn_varlen_func(*qkv, *packing, **shared)


@torch.inference_mode(False)
@torch.enable_grad()
def _raw_bwd(**a: Any) -> Any:
    names = [name for name in ("q", "k", "v", "lam", "norm_weight") if a[name] is not None]
    a = {name: _copy(arg) for name, arg in a.items()}  # no inference tensors
    leaves = {name: a[name].detach().requires_grad_() for name in names}
    out, lse = raw_fwd(**a | leaves)
    total = (out * a["dout"]).sum() + sum(leaf.sum() * 0 for leaf in leaves.values())
    if a["dlse"] is not None:  # a row without keys has lse = -inf, and no gradient
        total = total + torch.where(lse.isfinite(), lse * a["dlse"], 0.0).sum()
    return torch.autograd.grad(total, list(leaves.values()))


def _raw_decode(**a: Any) -> Any:
    a = _as_the_schema(a)
    args = {n: x for n, x in a.items() if n not in ("window_left", "window_right")} | _mask(a)
    if "lam" not in a:
        return reference.diff_flash_attn_with_kvcache(**args, lam=None, return_components=True)
    return reference.diff_flash_attn_with_kvcache(**args, return_lse=True)


def _op_major(components: Function) -> Function:
    """As the ops have the LSE: (2, .., nheads, seqlen_q)."""

    def run(**a: Any) -> Any:
        o, lse = components(**a)
        return o, lse.movedim(-2, 0)

    return run


RAW: dict[str, Function] = {
    "raw fwd": raw_fwd,
    "raw bwd": _raw_bwd,
    "raw decode": _raw_decode,
    "raw components": _op_major(raw_fwd),
    "raw decode_components": _op_major(_raw_decode),
    "raw bwd_partial": torch.ops.diffattn.bwd_partial,  # in fp64
}
