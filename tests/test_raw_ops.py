"""What torch.ops.diffattn refuses by itself: nothing in Python stands before these calls."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from support.impls import Impl
from support.refusal import refuses
from torch import Tensor

pytestmark = [pytest.mark.needs(what) for what in ("has_ops", "traces")]
Arguments = dict[str, Any]


def tensors(impl: Impl, **shapes: tuple[int, ...]) -> Arguments:
    fp32 = ("lam", "norm_weight")
    dtypes = {name: torch.float32 if name in fp32 else torch.bfloat16 for name in shapes}
    return {name: torch.rand(shape).to(impl.device, dtypes[name]) for name, shape in shapes.items()}


def int32(impl: Impl, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=impl.device)


OPTIONS: Arguments = {"softmax_scale": 0.3, "window_left": -1, "window_right": -1, "sink_size": 0,
                      "streaming_heads": -1, "norm_eps": 1e-5, "out_scale": 1.0}  # fmt: skip


def forward_arguments(impl: Impl, packed: bool = False) -> Arguments:
    """Batch 2 of 3 rows and 4 keys, or 6 and 8 packed ones; d 8, dv 16."""
    rows, keys = ((6,), (8,)) if packed else ((2, 3), (2, 4))
    given = tensors(impl, q=(*rows, 2, 2, 8), k=(*keys, 1, 2, 8), v=(*keys, 1, 16), lam=(*rows, 2),
                    norm_weight=(16,))  # fmt: skip
    offsets = [int32(impl, 0, n, 2 * n) if packed else None for n in (3, 4)]
    given |= dict(zip(("cu_seqlens_q", "cu_seqlens_k"), offsets, strict=True))
    longest = {"max_seqlen_q": 3, "max_seqlen_k": 4}
    return given | longest | OPTIONS | {"deterministic": False, "training": True}


def backward_arguments(impl: Impl, packed: bool = False) -> Arguments:
    given = forward_arguments(impl, packed)
    out, lse, o, o2, rstd = call("fwd", given)
    del given["training"]
    saved = {"o": o, "o2": o2, "lse": lse, "rstd": rstd}
    return given | saved | {"dout": torch.ones_like(out), "dlse": torch.ones_like(lse)}


def decode_arguments(impl: Impl, paged: bool = False) -> Arguments:
    """Batch 2 of one row; caches of 32 slots with 3 and 5 keys, one is appended; d and dv 16."""
    slots = (4, 16) if paged else (2, 32)
    given = tensors(impl, q=(2, 1, 2, 2, 16), k_cache=(*slots, 1, 2, 16), v_cache=(*slots, 1, 16),
                    lam=(2, 1, 2), k=(2, 1, 1, 2, 16), v=(2, 1, 1, 16), rotary_cos=(32, 8),
                    rotary_sin=(32, 8), norm_weight=(16,))  # fmt: skip
    given["cache_seqlens"], given["cache_leftpad"] = int32(impl, 3, 5), int32(impl, 1, 0)
    given["cache_batch_idx"] = None if paged else int32(impl, 1, 0)
    given["block_table"] = int32(impl, 0, 1, 2, 3).view(2, 2) if paged else None
    return given | OPTIONS | {"rotary_interleaved": True, "num_splits": 0}


ARGUMENTS = {"fwd": forward_arguments, "bwd": backward_arguments, "decode": decode_arguments}


def call(op: str, arguments: Arguments) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = getattr(torch.ops.diffattn, op)(**arguments)
    return results


# Of each op, in either form, the tensors that it reads.
READ: list[tuple[str, bool, list[str]]] = [
    ("fwd", False, ["q", "k", "v", "lam", "norm_weight"]),
    ("fwd", True, ["cu_seqlens_q", "cu_seqlens_k"]),
    ("bwd", False, ["dout", "dlse", "q", "k", "v", "lam", "norm_weight", "o", "lse", "rstd"]),
    ("bwd", True, ["cu_seqlens_q", "cu_seqlens_k"]),
    ("decode", False, ["q", "k_cache", "v_cache", "lam", "k", "v", "rotary_cos", "rotary_sin",
                       "cache_seqlens", "cache_batch_idx", "cache_leftpad", "norm_weight"]),
    ("decode", True, ["block_table"]),
]  # fmt: skip
TENSORS = pytest.mark.parametrize(
    ("op", "form", "name"), [(op, form, name) for op, form, names in READ for name in names]
)


@TENSORS
@pytest.mark.parametrize("cut", ["freed", "one byte short"])
def test_storage_that_is_gone(impl: Impl, op: str, form: bool, name: str, cut: str) -> None:
    """FSDP frees storages between uses; a null pointer is not an absent argument."""
    arguments = ARGUMENTS[op](impl, form)
    call(op, arguments)
    storage = arguments[name].untyped_storage()
    needed = storage.nbytes()
    storage.resize_(0 if cut == "freed" else needed - 1)
    with refuses(name, "storage", str(needed)):
        call(op, arguments)


@TENSORS
def test_one_tensor_elsewhere(impl: Impl, op: str, form: bool, name: str) -> None:
    """A meta tensor among real ones once gave memory that no kernel had written."""
    arguments = ARGUMENTS[op](impl, form)
    with refuses("device", "meta"):
        call(op, arguments | {name: arguments[name].to("meta")})


REQUIRED = ("dout", "q", "k", "v", "lam", "o", "lse", "rstd", "k_cache", "v_cache")


@TENSORS
def test_none_in_a_tensors_place(impl: Impl, op: str, form: bool, name: str) -> None:
    if name not in REQUIRED or op == "decode" and name in ("k", "v"):
        pytest.skip("optional")
    with refuses(name, "None"):
        call(op, ARGUMENTS[op](impl, form) | {name: None})


@TENSORS
def test_no_dimensions(impl: Impl, op: str, form: bool, name: str) -> None:
    arguments = ARGUMENTS[op](impl, form)
    with refuses(name, "shape ()"):
        call(op, arguments | {name: arguments[name].flatten()[0]})


@pytest.mark.parametrize("op", ["fwd", "bwd"])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("bound", [2**31, 2**62, 2**63 - 9, sys.maxsize])
def test_a_window_without_end(impl: Impl, op: str, packed: bool, bound: int) -> None:
    """Positions are added to it: near 2^63 the sum turned negative, and all was hidden."""
    arguments = ARGUMENTS[op](impl, packed)
    expected = call(op, arguments)
    for left, right in [(-1, bound), (bound, -1), (bound, bound)]:
        got = call(op, arguments | {"window_left": left, "window_right": right})
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("bound", [2**31, 2**62, 2**63 - 9, sys.maxsize])
def test_a_window_without_end_in_decoding(impl: Impl, bound: int) -> None:
    arguments = decode_arguments(impl)
    expected = call("decode", arguments | {"window_left": 32})
    for left, right in [(-1, bound), (bound, -1), (bound, bound)]:
        got = call("decode", arguments | {"window_left": left, "window_right": right})
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_one_half_of_new_values(impl: Impl) -> None:
    """V as wide as Q has no halves: kernels would look for the second one behind it."""
    arguments = decode_arguments(impl)
    with refuses("v has shape (2, 1, 1, 1, 16)", "headdim_v"):
        call("decode", arguments | {"v": arguments["v"].unsqueeze(-2)})


def test_new_keys_without_dimensions_next_to_a_ring(impl: Impl) -> None:
    arguments = decode_arguments(impl)
    ring = tensors(impl, k_stream=(2, 32, 1, 2, 16), v_stream=(2, 32, 1, 16))
    with refuses("k has shape ()", "seqlen_new"):
        call("decode", arguments | ring | {"k": arguments["k"].flatten()[0]})


def endless(keys: int, *tensors: Tensor) -> list[Tensor]:
    """The first key of the first sequence, again and again."""
    return [t[:1, :1].expand(1, keys, *t.shape[2:]) for t in tensors]


@pytest.mark.parametrize("keys", [2**42, 2**50, 2**58])
def test_keys_beyond_any_memory(impl: Impl, keys: int) -> None:
    """Sizes of working memory must not wrap around to small ones."""
    arguments = forward_arguments(impl)
    for name in ("q", "lam"):
        arguments[name] = arguments[name][:1]
    arguments["k"], arguments["v"] = endless(keys, arguments["k"], arguments["v"])
    with refuses("k", str(keys), "2^40"):
        call("fwd", arguments)
    arguments = decode_arguments(impl)
    caches = endless(keys // 2, arguments["k_cache"], arguments["v_cache"])
    arguments |= dict(zip(("k_cache", "v_cache"), caches, strict=True))
    with refuses("k_cache", str(keys // 2), "2^40"):
        call("decode", arguments)


@pytest.mark.needs("checks_values")
def test_no_memory(impl: Impl) -> None:
    """The error says how much was asked for, and the next call works."""
    arguments = forward_arguments(impl)
    k, v = endless(2**40, arguments["k"], arguments["v"])
    wide = {"q": arguments["q"][:1], "lam": arguments["lam"][:1], "k": k, "v": v}
    with pytest.raises(MemoryError, match=r"needs \d+ bytes of working memory"):
        call("fwd", arguments | wide)
    call("fwd", arguments)


@pytest.mark.needs("checks_values")
def test_index_tensors_in_the_memory_of_the_cache(impl: Impl) -> None:
    """Appending overwrites them; what was checked counts."""
    arguments = decode_arguments(impl)
    k_cache = arguments["k_cache"].zero_()
    arguments["k"].fill_(1e30)
    inside = k_cache.view(-1)[:8].view(torch.int32)  # of the first slot, where one key goes
    inside[1] = 1
    arguments |= {"cache_batch_idx": inside[:2], "cache_seqlens": inside[2:4],
                  "cache_leftpad": None, "norm_eps": None, "norm_weight": None}  # fmt: skip
    out, _ = call("decode", arguments)
    assert int(inside[1]) > 1
    expected = (1 - arguments["lam"][..., None]) * arguments["v"]  # each sees its new key alone
    torch.testing.assert_close(out, expected.to(out), rtol=1e-2, atol=1e-2)


@pytest.mark.needs("checks_values")
def test_new_keys_that_lie_in_their_slots(impl: Impl) -> None:
    """A caller may have written them there; then appending changes nothing."""
    arguments = decode_arguments(impl) | {"rotary_cos": None, "rotary_sin": None}
    caches = arguments["k_cache"], arguments["v_cache"]
    before = [cache.clone() for cache in caches]
    arguments["cache_seqlens"].fill_(3)
    arguments["cache_batch_idx"] = None
    arguments["k"], arguments["v"] = (cache[:, 3:4] for cache in caches)
    call("decode", arguments)
    assert all(torch.equal(a, b) for a, b in zip(caches, before, strict=True))


@pytest.mark.parametrize("op", ["fwd", "decode"])
def test_autocast_copies_nothing_that_is_expanded(impl: Impl, op: str) -> None:
    """The copy took memory for each repetition before anyone had looked at the shape."""
    arguments = ARGUMENTS[op](impl)
    arguments["k"] = arguments["k"].float()[:, :, :1].expand(-1, -1, 2**40, -1, -1)
    with torch.autocast(impl.device.type, torch.bfloat16), refuses("k", str(2**40)):
        call(op, arguments)


def too_long(t: Tensor) -> Tensor:
    """Of a few bytes, but no memory holds a copy."""
    return t.flatten()[:1].expand(2**48)


@TENSORS
def test_lazy_conjugates_are_refused_without_a_copy(
    impl: Impl, op: str, form: bool, name: str
) -> None:
    """Torch's own way copies one whole before an op sees it."""
    arguments = ARGUMENTS[op](impl, form)
    with refuses(name):
        call(op, arguments | {name: too_long(arguments[name].to(torch.complex64)).conj()})


@TENSORS
def test_lazy_negatives_are_checked_before_they_are_copied(
    impl: Impl, op: str, form: bool, name: str
) -> None:
    arguments = ARGUMENTS[op](impl, form)
    given = arguments[name]
    with refuses(name):
        call(op, arguments | {name: torch._neg_view(too_long(given))})
    freed = given.clone()
    freed.untyped_storage().resize_(0)
    with refuses(name):
        call(op, arguments | {name: torch._neg_view(freed)})
    if name not in ("k_cache", "v_cache"):
        lazy, expected = torch._neg_view(-given), call(op, arguments)
        for got, want in zip(call(op, arguments | {name: lazy}), expected, strict=True):
            assert torch.equal(got.nan_to_num(), want.nan_to_num())
