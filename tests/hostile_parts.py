"""Legal calls of what returns, merges, combines and differentiates components.

Their expected answers are those of the reference where it has the function. Merging, combining and
the backward of a part are compared with themselves in fp64: test_components.py holds them to the
reference, and what is asked here is that no call ends the process or passes unnoticed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hostile_calls import Arguments, Call, dense, kvcache, packed, raw_decode, raw_fwd
from torch import Tensor

import diffattn_cuda
from diffattn_cuda import (
    combine_components,
    diff_flash_attn_backward,
    groups,
    merge_components,
    reference,
)

_OF_THE_WHOLE = ("norm_weight", "norm_eps", "out_scale", "lam")


def apart(call: Call) -> Arguments:
    return _apart(packed(call) if call.rng.random() < 0.4 else dense(call))


def cached(call: Call) -> Arguments:
    return _apart(kvcache(call))


def _apart(args: Arguments) -> Arguments:
    kept = {name: arg for name, arg in args.items() if name not in _OF_THE_WHOLE}
    return kept | {"return_lse": False, "return_components": True}


def _function(where: Any, **args: Any) -> Any:
    """Dense, packed where there are cu_seqlens, of a cache where there is one."""
    name = "diff_flash_attn_func"
    if {"cu_seqlens_q", "cu_seqlens_k"} & {*args}:
        name = "diff_flash_attn_varlen_func"
    if {"k_cache", "v_cache"} & {*args}:
        name = "diff_flash_attn_with_kvcache"
    return getattr(where, name)(**args, lam=None)


def raw_components(call: Call) -> Arguments:
    return _of_parts(raw_fwd(call))


def raw_decode_components(call: Call) -> Arguments:
    args = raw_decode(call)
    return {n: x for n, x in args.items() if n not in _OF_THE_WHOLE}


def raw_bwd_partial(call: Call) -> Arguments:
    args = raw_fwd(call)
    lam, args = args["lam"], _of_parts(args)
    o, lse = torch.ops.diffattn.components(**args)
    dout = call.randn(*groups.heads_of(args["q"]), o.shape[-1]).to(args["q"].dtype)
    return {
        "dout": dout,
        "dlse": call.randn(*lse.shape).to(lse.dtype),
        "lse": lse,
        "lam": lam,
    } | args


def _of_parts(args: Arguments) -> Arguments:
    """What the ops of parts take: neither λ nor norm."""
    return {n: x for n, x in args.items() if n not in (*_OF_THE_WHOLE, "training")}


def merged(call: Call) -> Arguments:
    """Two parts, of which the first row may have seen no key in the second."""
    rng, dtype = call.rng, call.rng.choice([torch.float32, torch.float64])
    batch, rows, heads, dv = rng.choice([(), (2,)]), rng.randint(1, 20), rng.choice([1, 3]), 16
    of_o, of_lse = (*batch, rows, heads, 2, dv), (*batch, heads, 2, rows)
    args = {name: call.randn(*of_o).to(dtype) for name in ("o", "other_o")}
    args |= {name: call.randn(*of_lse).to(dtype) for name in ("lse", "other_lse")}
    if rng.random() < 0.3:
        args["other_lse"][..., 0] = -torch.inf
    return args


def merge(o: Any, other_o: Any, lse: Any, other_lse: Any) -> Any:
    return merge_components([o, other_o], [lse, other_lse])


def combined(call: Call) -> Arguments:
    o, rng = merged(call)["o"], call.rng
    lam = rng.choice([None, (), o.shape[-3:-2], o.shape[:-2]])
    args: Arguments = {
        "o": o,
        "lam": 0.6 if lam is None else call.randn(*lam).to(o.dtype),
        "out_scale": rng.choice([1.0, 0.2]),
    }
    if rng.random() < 0.5:
        args |= {"norm_eps": 1e-5, "norm_weight": call.randn(o.shape[-1])}
    return args


def part(call: Call) -> Arguments:
    """The backward of a whole problem as its only part."""
    args = dense(call)
    for name in ("return_lse", "deterministic"):
        del args[name]
    kept = {n: x for n, x in args.items() if n not in _OF_THE_WHOLE}
    o, lse = diffattn_cuda.diff_flash_attn_func(**kept, lam=None, return_components=True)
    heads = o.shape[-3] * (o.shape[-2] - 1)
    dout: Tensor = call.randn(*o.shape[:-3], heads, o.shape[-1]).to(args["q"].dtype)
    return {"dout": dout, "o": o, "lse": lse} | args


LEGAL = {
    "components": apart,
    "kvcache components": cached,
    "raw components": raw_components,
    "raw decode_components": raw_decode_components,
    "raw bwd_partial": raw_bwd_partial,
    "merge": merged,
    "combine": combined,
    "part": part,
}
_BOTH = partial(_function, diffattn_cuda), partial(_function, reference)
# Ours, and what the answer in fp64 is compared with.
PUBLIC = {
    "components": _BOTH,
    "kvcache components": _BOTH,
    "merge": (merge, merge),
    "combine": (combine_components, combine_components),
    "part": (diff_flash_attn_backward, diff_flash_attn_backward),
}
NAMES = {  # of the results; those that are not out and lse are compared as a whole
    "raw bwd_partial": ("dq", "dk", "dv"),
    "merge": ("merged_o", "merged_lse"),
    "combine": ("combined",),
    "part": ("dq", "dk", "dv", "dlam", "dnorm_weight"),
}
