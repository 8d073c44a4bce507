"""What hostile.py does to a legal call: to tensors that belong together, to indices and options.

As in hostile_tensors.py, a change says what it did, and records what it knows about the answer.
"""

from __future__ import annotations

from typing import Any

import hostile_tensors as tensors
import numpy as np
import torch
from hostile_calls import Call, generator, int32
from hostile_tensors import CACHES, FLOATS, HUGE, INDEX_NAMES, pick
from torch import Tensor

INTS = [0, 1, -1, -2, 3, 17, 2**31 - 1, 2**31, -(2**31), 2**40, 2**61, 2**62, 2**63 - 1, 2**63 - 1,
        -(2**63), 2**63, 2**64]  # fmt: skip
WRONG = ["x", 1j, [1], (1,), {}, b"x", object, torch.float32]  # for no argument
ODD = [None, True, np.int64(3), np.float32(0.5), np.bool_(True), torch.tensor(1), *WRONG]
INTEGERS = ("num_splits", "window_left", "window_right", "sink_size", "streaming_heads", "depth",
            "signal_per_noise")  # fmt: skip
INDEX_VALUES = [-(2**31), -1, 0, 1, 15, 16, 31, 32, 33, 160, 2**30, 2**31 - 1]


def huge(call: Call) -> str:
    name, t = pick(call)
    if not t.numel() or not t.dim():
        return ""
    dim, n = call.rng.randrange(t.dim()), call.rng.choice(HUGE)
    if not _expand(call, [name], [dim], n):
        return ""
    free = call.target in ("merge", "combine") or name in ("q", "x", "block_table")
    call.misshapen |= not free  # of what has no length to fit, memory may be asked for
    return f"{name}: {n} of dimension {dim}"


def _expand(call: Call, names: list[str], dims: list[int], n: int) -> bool:
    """A dimension of each becomes n long, of the same memory; torch may know no such tensor."""
    changed = {}
    for name, dim in zip(names, dims, strict=True):
        t = call.tensor(name)
        if t is None or t.dim() <= dim or not t.shape[dim]:
            return False
        sizes = [*t.shape]
        sizes[dim] = n
        try:
            changed[name] = t.narrow(dim, 0, 1).expand(sizes)
        except RuntimeError:
            return False
    call.args.update(changed)
    call.legal = False
    return True


def huge_together(call: Call) -> str:
    """The same dimension of all tensors that have it, so that shapes still fit."""
    n, rng = call.rng.choice(HUGE), call.rng
    groups = {
        "keys": (["k", "v"], 1),
        "slots": (["k_cache", "v_cache"], 1),
        "rows of a cache": (["k_cache", "v_cache"], 0),
        "queries": (["q"], 1),
        "positions": (["rotary_cos", "rotary_sin"], 0),
        "pages": (["block_table"], 1),
        "sequences": (["q", "k", "v"], 0),
    }
    there = [w for w, (names, _) in groups.items() if {*names} <= {*call.tensors()}]
    if not there:
        return ""
    which = rng.choice(there)
    names, dim = groups[which]
    if "cu_seqlens_q" in call.args and call.args["cu_seqlens_q"] is not None:
        dim = 0
    if not _expand(call, names, [dim] * len(names), n):
        return ""
    call.misshapen = False  # what was too long for the others may fit now
    if which == "queries" and rng.random() < 0.5 and "lam" in call.args:
        call.args["lam"] = 0.5
    if which == "keys" and rng.random() < 0.5 and "window_size" in call.args:
        call.args["window_size"] = (3, 0)  # few of them are seen
    return f"{n} {which}"


def index_in_cache(call: Call) -> str:
    """An index tensor in the very slot that the append will write."""
    names = [name for name in INDEX_NAMES if call.tensor(name) is not None]
    cache, lengths = call.tensor("k_cache"), call.tensor("cache_seqlens")
    if not names or cache is None or lengths is None or lengths.dim() != 1:
        return ""
    name, slot = call.rng.choice(names), int(lengths[0])
    index = call.args[name]
    if not cache.is_contiguous() or not 0 <= slot < cache.shape[1] or call.tensor("k") is None:
        return ""
    row = cache[0, slot].reshape(-1).view(torch.int32)
    if not index.is_contiguous() or index.numel() > row.numel() or index.dtype != torch.int32:
        return ""
    row[: index.numel()] = index.reshape(-1)
    call.args[name] = row[: index.numel()].view(index.shape)
    call.args["k"] = torch.full_like(call.args["k"], 3e4)
    call.legal = call.comparable = False
    return f"{name}: in a slot to be written"


def index_values(call: Call) -> str:
    names = [name for name in INDEX_NAMES if call.tensor(name) is not None]
    if not names:
        return ""
    name = call.rng.choice(names)
    t = call.args[name].clone(memory_format=torch.contiguous_format)
    if not t.numel() or t.dtype != torch.int32:
        return ""
    if call.rng.random() < 0.7:
        t.view(-1)[call.rng.randrange(t.numel())] = call.rng.choice(INDEX_VALUES)
    else:
        t.random_(-(2**31), 2**31 - 1, generator=generator(call.rng))
    call.args[name] = t
    call.legal = False
    tensors.leave_the_saved(call, name)
    _page_of_two(call, name)
    return f"{name}: {t.flatten().tolist()[:6]}"


def _page_of_two(call: Call, name: str) -> None:
    """One sequence may now read, as an old key, a slot that another appends to: in no order."""
    call.comparable &= name != "block_table" or call.args.get("k") is None


def no_new_rows(call: Call) -> str:
    """Nothing to append, or nothing that asks."""
    which = call.rng.choice([["q"], ["k", "v"]])
    if call.target not in ("kvcache", "raw decode"):
        return ""
    if any((t := call.tensor(name)) is None or t.dim() < 4 for name in which):
        return ""
    if which == ["q"] and (lam := call.tensor("lam")) is not None and lam.dim() == 3:
        call.args["lam"] = lam[:, :0]
    for name in which:
        call.args[name] = call.args[name][:, :0]
    call.legal &= which == ["q"] or call.tensor("k_stream") is None  # whose slots new keys spare
    tables = [n for n in ("rotary_cos", "rotary_sin") if call.tensor(n) is not None]
    if len(tables) == 2 and call.rng.random() < 0.7:
        lengths = torch.as_tensor(call.args["cache_seqlens"])
        for name in tables:  # no row for what is asked next
            call.args[name] = call.args[name][: int(lengths.max())].clone()
        call.legal = False
    return f"{which}: no rows"


def shared_slots(call: Call) -> str:
    """Two sequences of a batch write the same memory."""
    if call.tensor("k") is None or call.tensor("k_cache") is None:
        return ""
    for name in ("cache_batch_idx", "block_table"):
        index = call.tensor(name)
        if index is not None and index.dim() and index.shape[0] > 1:
            call.args[name] = index[:1].expand(index.shape).contiguous()
            call.legal = False
            _page_of_two(call, name)
            return f"{name}: all rows alike"
    for name in CACHES:
        t = call.tensor(name)
        if t is None or not t.dim() or not t.shape[0]:
            return ""
        call.args[name] = t[:1].expand(t.shape)
        call.legal &= t.shape[0] == 1
    return "caches: of one row, expanded"


def page_size(call: Call) -> str:
    if call.tensor("block_table") is None:
        return ""
    page = call.rng.choice([0, 1, 3, 8, 17, 24, 48])
    for name in CACHES:
        t = call.tensor(name)
        if t is None or t.dim() < 2 or not t.shape[1]:
            return ""
        call.args[name] = torch.cat([t] * 4, 1)[:, :page].contiguous()
    call.legal = False
    return f"pages of {page}"


def batch_of_one_index(call: Call) -> str:
    """cu_seqlens of one entry, or of none: no sequences."""
    if call.tensor("cu_seqlens_q") is None:
        return ""
    n = call.rng.choice([0, 1])
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        call.args[name] = int32([0] * n)
    call.legal = False
    return f"cu_seqlens of {n} entries"


def _plain(call: Call) -> list[str]:
    return [name for name, arg in call.args.items() if not isinstance(arg, Tensor)]


def number(call: Call) -> str:
    """An option of the right kind and an extreme value."""
    counted = [n for n in _plain(call) if "window" in n or n in ("softmax_scale", "num_splits")]
    name = call.rng.choice(_plain(call) + 3 * counted)  # what kernels calculate with
    old = call.args[name]
    integers = "seqlen" in name or name in INTEGERS
    sizes = ("embed_dim", "num_heads", "num_kv_heads")
    if isinstance(old, bool) or name in sizes:
        return ""
    new: Any = call.rng.choice(INTS if integers else FLOATS)
    if name == "window_size":
        new = tuple(call.rng.choice([*INTS, -1]) for _ in range(2))
    call.args[name] = new
    call.legal = call.tame = False
    return f"{name}: {new}"


def odd(call: Call) -> str:
    """An argument of another type."""
    name = call.rng.choice([*call.args, *_plain(call)])
    old, new = call.args[name], call.rng.choice(ODD)
    call.args[name] = new
    call.legal = call.tame = False
    # How torch takes bools, and its own dtypes as int.
    by_torch = isinstance(old, bool) or (name == "streaming_heads" and new is torch.float32)
    converted = call.target.startswith("raw") and by_torch
    call.comparable &= not (converted and isinstance(new, torch.dtype))  # which number, torch knows
    if any(new is wrong for wrong in WRONG) and not converted and name != "dtype":
        call.must_refuse[name] = f"{name} is {new!r}"
    if new is True and name in ("lam", "cache_seqlens"):
        call.must_refuse[name] = f"{name} is True"
    return f"{name}: {new!r}"


def missing(call: Call) -> str:
    name = call.rng.choice([*call.args])
    del call.args[name]
    call.legal = call.tame = False
    return f"{name}: not given"


CHANGES: dict[tensors.Change, int] = tensors.CHANGES | {  # and how often
    huge: 4, huge_together: 6, index_in_cache: 3, index_values: 5, no_new_rows: 4, shared_slots: 3,
    page_size: 1, batch_of_one_index: 1, number: 12, odd: 5, missing: 1,
}  # fmt: skip


def _takes_hours(call: Call) -> bool:
    """So many keys are to be read, of a few that are expanded to a long cache."""
    cache, table = _shape(call, "v_cache"), _shape(call, "block_table")
    if len(cache) < 2:
        return False
    capacity = cache[1] * (table[-1] if table else 1)
    lengths = call.args.get("cache_seqlens")
    if (tensor := call.tensor("cache_seqlens")) is not None and tensor.dtype == torch.int32:
        lengths = int(tensor.max()) if tensor.numel() else 0
    longest = lengths if isinstance(lengths, int) else capacity
    if call.tensor("v_stream") is not None:  # which the reference spreads over all keys
        return longest > 2**16
    return min(longest, capacity) > 2**24


def _shape(call: Call, name: str) -> tuple[int, ...]:
    t = call.args.get(name)
    return tuple(t.shape) if isinstance(t, Tensor) and not t.is_nested else ()


def spoil(call: Call, contexts: list[str]) -> None:
    """0 to 3 changes, and now and then another context."""
    for _ in range(call.rng.choice([0, 1, 1, 1, 2, 2, 3])):
        change = call.rng.choices([*CHANGES], [*CHANGES.values()])[0]
        if not call.tensors():
            break
        before, reasons = dict(call.args), dict(call.must_refuse)
        known = call.legal, call.misshapen, call.comparable, call.tame
        try:
            did = change(call)
        except Exception as error:  # an earlier change left nothing that this one could change
            did, call.legal = f"{change.__name__} failed: {type(error).__name__}", False
        if _takes_hours(call):
            call.args, call.must_refuse = before, reasons
            call.legal, call.misshapen, call.comparable, call.tame = known
            continue
        for name, why in reasons.items():  # what a change replaces is no reason any more
            if call.args.get(name) is not before[name] and call.must_refuse[name] == why:
                del call.must_refuse[name]
        if did:
            call.changes.append(did)
    if call.rng.random() < 0.3:
        call.context = call.rng.choice(contexts)
