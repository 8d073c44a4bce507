"""Options, numbers and kinds of tensors that are not accepted, in one line that names them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from support.case import Case
from support.data import flat, make_problem
from support.impls import Impl
from torch import Tensor

from diffattn_cuda import reference

pytestmark = pytest.mark.needs("has_ops")
Arguments = dict[str, Any]


def legal(impl: Impl, function: str, heads_k: int = 1) -> tuple[Callable[..., Tensor], Arguments]:
    """A call of any of the three functions, and what it is called with."""
    p = make_problem(Case(sq=9, sk=9, heads_k=heads_k, dtype=impl.dtypes[-1]), impl.device)
    q, k, v = flat(p.q), flat(p.k), p.v
    if function == "func":
        return impl.func, {"q": q, "k": k, "v": v, "lam": 0.5}
    if function == "varlen":
        cu = torch.tensor([0, 4, 9], dtype=torch.int32, device=impl.device)
        return impl.varlen, {"q": q[0], "k": k[0], "v": v[0], "lam": 0.5, "cu_seqlens_q": cu,
                             "cu_seqlens_k": cu, "max_seqlen_q": 5, "max_seqlen_k": 5}  # fmt: skip
    return impl.kvcache, {"q": q, "k_cache": k, "v_cache": v, "lam": 0.5, "cache_seqlens": 9}


WRONG: list[tuple[str, str, object, str]] = [
    ("func", "causal", "no", "True or False"),
    ("func", "causal", None, "True or False"),
    ("func", "causal", 1, "True or False"),
    ("func", "return_lse", 2, "True or False"),
    ("func", "deterministic", "yes", "True or False"),
    ("varlen", "return_lse", 0, "True or False"),
    ("kv", "rotary_interleaved", "neox", "True or False"),
    ("kv", "return_lse", [], "True or False"),
    ("kv", "cache_seqlens", True, "an int"),
    ("kv", "cache_seqlens", 3.0, "an int"),
    ("kv", "cache_seqlens", [9, 9], r"int32 tensor \(batch,\) = \(2,\)"),
    ("kv", "cache_seqlens", torch.tensor(9, dtype=torch.int32), r"int32 tensor \(batch,\)"),
    ("kv", "cache_seqlens", 2**31, "accepted: 0 to what the cache holds"),
    ("kv", "cache_seqlens", -(2**40), "accepted: 0 to what the cache holds"),
    ("kv", "cache_seqlens", 2**64, "64 bits"),
    ("kv", "num_splits", 1.0, "an integer"),
    ("kv", "num_splits", False, "an integer"),
    ("kv", "num_splits", 2**63, "64 bits"),
    ("varlen", "max_seqlen_q", None, "an integer"),
    ("varlen", "max_seqlen_k", 5.0, "an integer"),
    ("varlen", "max_seqlen_k", "5", "an integer"),
    ("func", "softmax_scale", True, "None .* or a number"),
    ("func", "softmax_scale", 0.0, "dropout_p"),
    ("func", "softmax_scale", torch.ones(2), "a number"),
    ("func", "softcap", -30.0, "0 .*or a number from"),
    ("func", "softcap", float("nan"), "0 .*or a number from"),
    ("func", "softcap", float("inf"), "0 .*or a number from"),
    ("func", "softcap", 1e-12, "0 .*or a number from"),
    ("func", "softcap", True, "0 .*or a number from"),
    ("func", "softcap", None, "0 .*or a number from"),
    ("func", "softcap", "30", "0 .*or a number from"),
    ("func", "softcap", torch.tensor(30.0), "0 .*or a number from"),
    ("varlen", "softcap", -1.0, "0 .*or a number from"),
    ("kv", "softcap", 1e12, "0 .*or a number from"),
    ("func", "out_scale", 1j, "a number"),
    ("func", "out_scale", torch.tensor(1.0, requires_grad=True), "requires a gradient"),
    ("func", "norm_eps", b"1e-5", "None or a number"),
    ("func", "lam", np.ones(2), "a number or a tensor"),
    ("func", "window_size", (-1, -3), "-1 for unbounded"),
    ("func", "window_size", (-2, 0), "-1 for unbounded"),
    ("func", "window_size", (0.5, 0), "two integers"),
    ("func", "window_size", (True, 0), "two integers"),
    ("func", "norm_weight", torch.ones(()), r"shape \(\), expected \(headdim_v,\) = \(64\)"),
    ("func", "norm_weight", torch.ones(64, dtype=torch.int32), "floating point"),
]


@pytest.mark.parametrize("function, name, value, accepted", WRONG)
def test_value(impl: Impl, function: str, name: str, value: Any, accepted: str) -> None:
    call, arguments = legal(impl, function)
    call(**arguments)
    if name == "norm_weight":
        arguments["norm_eps"], value = 1e-5, value.to(impl.device)
    if isinstance(value, Tensor):
        value = value.detach().to(impl.device).requires_grad_(value.requires_grad)
    with pytest.raises((ValueError, TypeError), match=f"{name} .*{accepted}") as caught:
        call(**arguments | {name: value})
    assert "\n" not in str(caught.value)


ALIKE: list[tuple[str, str, Any, Any]] = [
    ("func", "causal", np.True_, True),
    ("func", "lam", np.float32(0.25), 0.25),
    ("func", "lam", np.int64(2), 2.0),
    ("func", "out_scale", np.float32(0.5), 0.5),
    ("func", "out_scale", Fraction(1, 2), 0.5),
    ("func", "softmax_scale", np.int64(1), 1.0),
    ("func", "softmax_scale", 1, 1.0),
    ("func", "norm_eps", np.float64(1e-2), 1e-2),
    ("func", "window_size", np.array([3, 0]), (3, 0)),
    ("varlen", "max_seqlen_q", np.int32(6), 6),
    ("varlen", "max_seqlen_k", torch.tensor(6), 6),
    ("kv", "cache_seqlens", np.int64(7), 7),
    ("kv", "num_splits", np.int64(2), 2),
]


@pytest.mark.parametrize("function, name, value, plain", ALIKE)
def test_what_counts_as_a_number(
    impl: Impl, function: str, name: str, value: Any, plain: Any
) -> None:
    call, arguments = legal(impl, function)
    got, expected = (call(**arguments | {name: x}) for x in (value, plain))
    assert torch.equal(got, expected)
    if name not in ("max_seqlen_q", "max_seqlen_k", "num_splits"):  # which only bound and divide
        assert not torch.equal(got, call(**arguments))


def test_a_tensor_that_needs_no_gradient_is_a_number(impl: Impl) -> None:
    call, arguments = legal(impl, "func")
    half = torch.tensor(0.5, device=impl.device)
    assert torch.equal(call(**arguments, out_scale=half), call(**arguments, out_scale=0.5))


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor([x[0], x[0]])


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)


UNUSUAL: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda x: x.to_sparse(),
    "nested": nested,
    "quantized": quantized,
    "mkldnn": lambda x: x.float().to_mkldnn(),
}
TENSORS = [("func", "q"), ("func", "k"), ("func", "v"), ("func", "lam"), ("func", "norm_weight"),
           ("kv", "q"), ("kv", "k_cache"), ("kv", "v_cache"), ("kv", "k"), ("kv", "v"),
           ("kv", "rotary_cos"), ("kv", "cache_batch_idx"), ("varlen", "cu_seqlens_q")]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", list(UNUSUAL))
@pytest.mark.parametrize("function, name", TENSORS)
def test_kind_of_tensor(impl: Impl, function: str, name: str, kind: str) -> None:
    call, arguments = legal(impl, function)
    value = UNUSUAL[kind](torch.ones(2, 9, 2, 32))
    with pytest.raises(TypeError, match=rf"{name} is a .* tensor, accepted: dense"):
        call(**arguments | {name: value})


FREED = [*TENSORS, ("kv", "lam"), ("kv", "norm_weight"), ("kv", "rotary_sin")]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("function, name", FREED)
def test_freed_storage(impl: Impl, function: str, name: str, autocast: bool) -> None:
    """Before it is viewed, which torch words in its own way, or cast, which is a crash."""
    call, arguments = legal(impl, function)
    value = arguments.get(name)
    value = value.clone() if isinstance(value, Tensor) else torch.ones(4, dtype=torch.float16)
    value.untyped_storage().resize_(0)
    with (
        torch.autocast(impl.device.type, torch.bfloat16, enabled=autocast),
        pytest.raises(RuntimeError, match=rf"^{name} has a storage of 0 bytes.*freed"),
    ):
        call(**arguments | {name: value.to(impl.device)})


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_freed_storage_that_autocast_would_read(impl: Impl, name: str) -> None:
    q, k = (torch.ones(1, 3, 1, 2, 16, device=impl.device) for _ in range(2))
    given = {"q": q, "k": k, "v": q[..., 0, :].clone()}
    given[name].untyped_storage().resize_(0)
    lam = torch.ones(1, 3, 1, device=impl.device)
    options = (None, None, None, 0, 0, 0.2, -1, -1, 0, -1, None, 1.0, False, False)
    with (
        torch.autocast(impl.device.type, torch.bfloat16),
        pytest.raises(RuntimeError, match=rf"^{name} has a storage of 0 bytes.*freed"),
    ):
        torch.ops.diffattn.fwd(*given.values(), lam, *options)


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_negative_view_of_a_cache(impl: Impl, name: str) -> None:
    call, arguments = legal(impl, "kv")
    lazy = torch._neg_view(-arguments[name])
    with pytest.raises(ValueError, match=f"{name} .*resolve_neg"):
        call(**arguments | {name: lazy})
    got = call(**arguments | {name: lazy.resolve_neg()})
    assert torch.equal(got, call(**arguments))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_negative_view_of_an_input(impl: Impl, name: str) -> None:
    call, arguments = legal(impl, "func")
    lazy = torch._neg_view(-arguments[name])
    assert torch.equal(call(**arguments | {name: lazy}), call(**arguments))


def test_a_lambda_beyond_fp32(impl: Impl) -> None:
    p = make_problem(Case(sq=3, sk=4, dtype=impl.dtypes[0]), impl.device)
    with pytest.raises(ValueError, match=r"lam is 1e\+308, accepted: what torch.float32 can hold"):
        impl.func(flat(p.q), flat(p.k), p.v, 1e308)


@pytest.mark.parametrize("far", [2**62, sys.maxsize, 2**64])
def test_rows_share_a_position_in_a_window_without_bounds(impl: Impl, far: int) -> None:
    """Rotary tells rows apart only where a mask does, here and in the reference."""
    dtype = impl.dtypes[-1]
    q, k, v = (torch.randn(1, 5, 2, 16, dtype=dtype, device=impl.device) for _ in range(3))
    angles = torch.rand(9, 8, device=impl.device)
    arguments = (0.5, k[:, :1], v[:, :1, :1], angles.cos().to(dtype), angles.sin().to(dtype), 4)
    for function in (impl.kvcache, reference.diff_flash_attn_with_kvcache):
        near, wide = (
            function(q, k.clone(), v[:, :, :1].clone(), *arguments, window_size=window)
            for window in ((-1, -1), (-1, far))
        )
        assert torch.equal(near, wide)


FAR = [sys.maxsize, sys.maxsize - 1, 2**62, 2**62 + 1, 2**63, 2**64 + 1, 10**30]


@pytest.mark.parametrize("far", FAR)
@pytest.mark.parametrize("causal", [False, True])
def test_window_wider_than_any_sequence(impl: Impl, far: int, causal: bool) -> None:
    """-1 and any number of keys that no sequence has are the same window, to the last bit."""
    p = make_problem(Case(sq=70, sk=40, dtype=impl.dtypes[-1]), impl.device)
    args = (flat(p.q), flat(p.k), p.v, 0.5)
    exact = (flat(p.q).double(), flat(p.k).double(), p.v.double(), 0.5)
    for wide, unbounded in [((far, -1), (-1, -1)), ((-1, far), (-1, -1)), ((far, far), (-1, -1)),
                            ((3, far), (3, -1)), ((far, 2), (-1, 2))]:  # fmt: skip
        got = impl.func(*args, causal=causal, window_size=wide)
        assert torch.equal(got, impl.func(*args, causal=causal, window_size=unbounded))
        oracle, same = (
            reference.diff_flash_attn_func(*exact, causal=causal, window_size=window)
            for window in (wide, unbounded)
        )
        assert torch.equal(oracle, same)
        cached = impl.kvcache(*args, causal=causal, window_size=wide)
        assert torch.equal(cached, impl.kvcache(*args, causal=causal, window_size=unbounded))
