"""What hostile.py does to a tensor of a call. Each change says what it did, or "" where it cannot.

A change records what it knows about the answer: that the call stays legal, or can no longer be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hostile_calls import Call
from torch import Tensor

# Times a row's bytes, the last of these wrap to little or nothing.
HUGE = [2**31 - 1, 2**31, 2**32, 2**40, 2**48, *(2**n for n in range(55, 63)), 2**63 - 1]
FLOATS = [0.0, -0.0, 1e-45, 1e-44, 1e-320, 1e-5, 3e4, 1e30, 1e38, 1e308,
          math.inf, -math.inf, math.nan, -1.0]  # fmt: skip
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
          torch.int8, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.bool,
          torch.complex64, torch.complex32]  # fmt: skip
INDEX_NAMES = ("cu_seqlens_q", "cu_seqlens_k", "cache_seqlens", "cache_batch_idx", "cache_leftpad",
               "block_table", "seqlens")  # fmt: skip
ROWS = {"q", "k", "v", "lam", "norm_weight", "dout", "x"}  # of any strides
UNREAD = {"o", "o2", "rstd"}  # by the CPU's backward, at least without a norm
CACHES = ("k_cache", "v_cache")
RINGS = ("k_stream", "v_stream")
Change = Callable[[Call], str]


def pick(call: Call) -> tuple[str, Tensor]:
    name = call.rng.choice(call.tensors())
    return name, call.args[name]


def rank(call: Call) -> str:
    name, t = pick(call)
    call.legal = False
    if t.dim() and call.rng.random() < 0.6:
        dim = call.rng.randrange(t.dim())
        if t.shape[dim]:
            call.args[name] = t.select(dim, 0)
            return f"{name}: dimension {dim} gone"
    dim = call.rng.randint(0, t.dim())
    call.args[name] = t.unsqueeze(dim)
    return f"{name}: a dimension more at {dim}"


def size(call: Call) -> str:
    """A dimension longer or shorter than it was, or two swapped."""
    name, t = pick(call)
    if not t.dim():
        return ""
    call.legal = False
    dim, other = call.rng.randrange(t.dim()), call.rng.randrange(t.dim())
    what = call.rng.choice(["none", "fewer", "more", "swapped"])
    if what == "none":
        call.args[name] = t.narrow(dim, 0, 0)
    elif what == "fewer":
        call.args[name] = t.narrow(dim, 0, t.shape[dim] // 2)
    elif what == "more":
        call.args[name] = torch.cat([t, t], dim)
    else:
        call.args[name] = t.transpose(dim, other)
    leave_the_saved(call, name)
    return f"{name}: {what} of dimension {dim}"


def leave_the_saved(call: Call, name: str) -> None:
    """A backward whose o, lse and rstd are those of other numbers has no right answer."""
    call.comparable &= call.target != "raw bwd" or name in ("dout", "dlse")


def strides(call: Call) -> str:
    """A dimension of size 1 or 0 may carry any stride."""
    name, t = pick(call)
    small = [dim for dim in range(t.dim()) if t.shape[dim] <= 1]
    if not small:
        return ""
    wild, dim = [*t.stride()], call.rng.choice(small)
    wild[dim] = call.rng.choice([0, 3, *HUGE])
    try:
        call.args[name] = t.as_strided(t.shape, wild)
    except RuntimeError:
        return ""
    call.legal &= name in ROWS
    return f"{name}: stride {wild[dim]} of dimension {dim}"


def spread(call: Call) -> str:
    """The same numbers at other places."""
    name, t = pick(call)
    if not t.dim():
        return ""
    how = call.rng.choice(["every other", "turned", "from an odd address"])
    if how == "every other":
        call.args[name] = torch.stack([t, t], -1)[..., 0]
    elif how == "turned":
        call.args[name] = t.transpose(0, -1).contiguous().transpose(0, -1)
    else:
        call.args[name] = torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    call.legal &= name in ROWS or how == "from an odd address"
    return f"{name}: {how}"


def dtype(call: Call) -> str:
    name, t = pick(call)
    to = call.rng.choice(DTYPES)
    call.args[name] = t.to(to)
    call.legal &= to == t.dtype
    return f"{name}: {to}"


def layout(call: Call) -> str:
    name, t = pick(call)
    makers: dict[str, Callable[[], Tensor]] = {
        "sparse": t.to_sparse,
        "mkldnn": t.to_mkldnn,
        "nested": lambda: torch.nested.nested_tensor([*t]),
        "jagged": lambda: torch.nested.nested_tensor([*t], layout=torch.jagged),
        "quantized": lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        "meta": lambda: t.to("meta"),
        "negated": lambda: torch._neg_view(-t),
        "conjugated": lambda: t.to(torch.complex64).conj(),
        "parameter": lambda: torch.nn.Parameter(t, requires_grad=False),
        "subclass": lambda: t.as_subclass(Subclass),
    }
    how = call.rng.choice(list(makers))
    try:
        call.args[name] = makers[how]()
    except (RuntimeError, TypeError, IndexError):  # not of this dtype or rank
        return ""
    call.legal &= how in ("parameter", "subclass")
    if how in ("sparse", "mkldnn", "nested", "jagged", "quantized", "meta", "conjugated"):
        _refuse(call, name, how)
    return f"{name}: {how}"


def _refuse(call: Call, name: str, why: str) -> None:
    if name not in UNREAD:
        call.must_refuse[name] = f"{name} is {why}"


class Subclass(Tensor):
    """A tensor of another type that behaves like one."""


def freed(call: Call) -> str:
    """Storage taken away, as FSDP does between uses."""
    name, t = pick(call)
    if not t.numel():
        return ""
    t = t.clone(memory_format=torch.contiguous_format)
    t.untyped_storage().resize_(0)
    call.args[name] = t
    call.legal = False
    _refuse(call, name, "without storage")
    return f"{name}: freed"


def alias(call: Call) -> str:
    """One argument in the memory of another, with its own numbers where they fit."""
    name, t = pick(call)
    onto, host = pick(call)
    size_a, size_b = t.numel() * t.element_size(), host.numel() * host.element_size()
    if name == onto or not host.is_contiguous() or not 0 < size_a <= size_b:
        return ""
    room = host.view(-1).view(torch.uint8)
    at = call.rng.randrange(0, size_b - size_a + 1, host.element_size())
    at -= at % t.element_size()
    inside = room[at : at + size_a].view(t.dtype).view(t.shape)
    inside.copy_(t)
    call.args[name] = inside
    call.legal = call.tame = False
    if {name, onto} & {*CACHES, *RINGS}:
        call.comparable &= call.args.get("k") is None and call.target not in ("v1", "v2")
    call.comparable &= onto not in INDEX_NAMES
    return f"{name}: in {onto}'s memory"


def values(call: Call) -> str:
    name, t = pick(call)
    if not t.is_floating_point() or not t.numel():
        return ""
    value = call.rng.choice([*FLOATS, 1e5, 4e9])
    t = t.clone(memory_format=torch.contiguous_format)
    if call.rng.random() < 0.5:
        t.view(-1)[call.rng.randrange(t.numel())] = value
    else:
        t.fill_(value)
    call.args[name] = t
    call.tame = False
    call.legal &= name not in (
        *CACHES,
        *RINGS,
    )  # contiguous now, which an aliased or expanded one was not
    return f"{name}: {value}"


def large_scores(call: Call) -> str:
    """Scores that fp32 holds, far above those of any model."""
    keys = "k_cache" if "k_cache" in call.args else "k"
    names = [name for name in ("q", keys) if call.tensor(name) is not None]
    factor = call.rng.choice([1e3, 1e4, 6e4])
    for name in names:
        if not call.args[name].is_floating_point():
            return ""
        call.args[name] = call.args[name] * factor
    call.tame = False
    return f"{names}: times {factor}"


CHANGES: dict[Change, int] = {  # and how often
    rank: 3, size: 5, strides: 2, spread: 3, dtype: 4, layout: 5, freed: 4, alias: 5, values: 4,
    large_scores: 3,
}  # fmt: skip
