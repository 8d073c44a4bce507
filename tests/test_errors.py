"""Wrong arguments of the dense and packed functions: what each error says. Never a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.case import Case
from support.checks import leaves
from support.data import flat, make_problem
from support.impls import Impl
from support.refusal import refuses
from torch import Tensor

pytestmark = pytest.mark.needs("has_ops")
Arguments = dict[str, Any]
Change = Callable[[Arguments], Arguments]


def dense_arguments(impl: Impl) -> Arguments:
    """A legal call: 4 heads over 2, d 16, dv 32, batch 2, 9 queries and 7 keys."""
    dtype = impl.dtypes[-1] if torch.float32 not in impl.dtypes else torch.float32
    case = Case(sq=9, sk=7, heads=4, heads_k=2, d=16, dv=32, dtype=dtype)
    p = make_problem(case, impl.device)
    return {"q": flat(p.q), "k": flat(p.k), "v": p.v, "lam": 0.5}


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


DENSE: dict[str, tuple[Change, list[str]]] = {
    "q of another dtype": (lambda a: {"q": a["q"].double()}, ["k", "float", "double"]),
    "k of another dtype": (lambda a: {"k": a["k"].double()}, ["k", "float", "double"]),
    "v of another dtype": (lambda a: {"v": a["v"].half()}, ["v", "float", "half"]),
    "integers": (lambda a: {n: a[n].int() for n in "qkv"}, ["q", "int", "fp16"]),
    "complex": (lambda a: {n: a[n].to(torch.complex64) for n in "qkv"}, ["q", "complex"]),
    "float8": (lambda a: {n: a[n].to(torch.float8_e4m3fn) for n in "qkv"}, ["q", "float8"]),
    "k on another device": (lambda a: {"k": a["k"].to("meta")}, ["k", "device"]),
    "v on another device": (lambda a: {"v": a["v"].to("meta")}, ["v", "device"]),
    "q on another device": (lambda a: {"q": a["q"].to("meta")}, ["q", "device"]),
    "lam on another device": (lambda _: {"lam": randn(4).to("meta")}, ["lam", "device"]),
    "weight on another device": (
        lambda _: {"norm_weight": randn(32).to("meta"), "norm_eps": 1e-5},
        ["norm_weight", "device"],
    ),
    "heads not a multiple": (
        lambda _: {"k": randn(2, 7, 6, 16), "v": randn(2, 7, 3, 32)},
        ["4", "3", "nheads", "nheads_k"],
    ),
    "fewer query heads": (
        lambda _: {"k": randn(2, 7, 16, 16), "v": randn(2, 7, 8, 32)},
        ["4", "8"],
    ),
    "no heads": (lambda _: {"q": randn(2, 9, 0, 16)}, ["0", "heads"]),
    "no key heads": (
        lambda _: {"k": randn(2, 7, 0, 2, 16), "v": randn(2, 7, 0, 32)},
        ["0", "heads"],
    ),
    "odd query heads": (lambda _: {"q": randn(2, 9, 7, 16)}, ["q", "(2, 9, 7, 16)", "even"]),
    "key heads": (lambda _: {"k": randn(2, 7, 5, 16)}, ["k", "(2, 7, 5, 16)", "4", "2"]),
    "ten components of q": (lambda _: {"q": randn(2, 9, 4, 10, 16)}, ["q", "(2, 9, 4, 10, 16)"]),
    "three components of k": (lambda _: {"k": randn(2, 7, 2, 3, 16)}, ["k", "(2, 7, 2, 3, 16)"]),
    "k wider than q": (lambda _: {"k": randn(2, 7, 4, 24)}, ["k", "24", "16"]),
    "v of another width": (lambda _: {"v": randn(2, 7, 2, 24)}, ["v", "24", "16", "32"]),
    "d above 128": (
        lambda _: {"q": randn(2, 9, 8, 136), "k": randn(2, 7, 4, 136), "v": randn(2, 7, 2, 136)},
        ["136", "128"],
    ),
    "d not a multiple of 8": (
        lambda _: {"q": randn(2, 9, 8, 20), "k": randn(2, 7, 4, 20), "v": randn(2, 7, 2, 20)},
        ["20", "multiple of 8"],
    ),
    "d zero": (
        lambda _: {"q": randn(2, 9, 8, 0), "k": randn(2, 7, 4, 0), "v": randn(2, 7, 2, 0)},
        ["0", "multiple of 8"],
    ),
    "batch": (lambda _: {"k": randn(3, 7, 4, 16), "v": randn(3, 7, 2, 32)}, ["3", "2"]),
    "batch of v": (lambda _: {"v": randn(1, 7, 2, 32)}, ["v", "(1, 7, 2, 32)", "(2, 7, 2, 32)"]),
    "length of v": (lambda _: {"v": randn(2, 8, 2, 32)}, ["v", "(2, 8, 2, 32)", "(2, 7, 2, 32)"]),
    "q of rank 3": (lambda _: {"q": randn(9, 8, 16)}, ["q", "(9, 8, 16)"]),
    "k of rank 3": (lambda _: {"k": randn(7, 4, 16)}, ["k", "(7, 4, 16)"]),
    "v in three parts": (lambda _: {"v": randn(2, 7, 2, 3, 16)}, ["v", "(2, 7, 2, 3, 16)"]),
    "q not a tensor": (lambda _: {"q": [1.0]}, ["q", "list", "tensor"]),
    "k not a tensor": (lambda _: {"k": None}, ["k", "NoneType", "tensor"]),
    "v not a tensor": (lambda _: {"v": 1.0}, ["v", "float", "tensor"]),
    "lam per key": (lambda _: {"lam": randn(2, 7, 4)}, ["lam", "(2, 7, 4)", "(4,)", "(2, 9, 4)"]),
    "lam per pair of heads": (lambda _: {"lam": randn(8)}, ["lam", "(8,)", "(4,)"]),
    "lam of one row": (lambda _: {"lam": randn(1, 9, 4)}, ["lam", "(1, 9, 4)", "(2, 9, 4)"]),
    "lam of integers": (lambda _: {"lam": torch.tensor(1)}, ["lam", "int64", "float32"]),
    "lam of another dtype": (
        lambda a: {
            "lam": randn(4).to(torch.half if a["q"].dtype == torch.bfloat16 else torch.bfloat16)
        },
        ["lam", "float16"],
    ),
    "lam a string": (lambda _: {"lam": "0.5"}, ["lam", "str"]),
    "lam a bool": (lambda _: {"lam": True}, ["lam", "bool"]),
    "lam None": (lambda _: {"lam": None}, ["lam", "NoneType"]),
    "lam complex": (lambda _: {"lam": 1j}, ["lam", "complex"]),
    "window of one": (lambda _: {"window_size": 5}, ["window_size", "5", "left, right"]),
    "window of three": (lambda _: {"window_size": (1, 2, 3)}, ["window_size", "(1, 2, 3)"]),
    "window of words": (lambda _: {"window_size": ("a", "b")}, ["window_size", "'a'"]),
    "window of fractions": (lambda _: {"window_size": (1.5, 2)}, ["window_size", "1.5"]),
    "window None": (lambda _: {"window_size": None}, ["window_size", "None"]),
    "weight without eps": (lambda _: {"norm_weight": randn(32)}, ["norm_weight", "norm_eps"]),
    "weight of another width": (
        lambda _: {"norm_weight": randn(16), "norm_eps": 1e-5},
        ["norm_weight", "(16)", "(32)"],
    ),
    "negative eps": (lambda _: {"norm_eps": -1e-5}, ["norm_eps", "-1e-05"]),
    "scale a string": (lambda _: {"softmax_scale": "1"}, ["softmax_scale", "'1'"]),
    "out_scale a string": (lambda _: {"out_scale": "1"}, ["out_scale", "'1'"]),
    "out_scale None": (lambda _: {"out_scale": None}, ["out_scale", "None"]),
    "weight not a tensor": (
        lambda _: {"norm_weight": [1.0] * 32, "norm_eps": 1e-5},
        ["norm_weight", "list"],
    ),
}


@pytest.mark.parametrize("name", list(DENSE))
def test_dense_argument(impl: Impl, name: str) -> None:
    change, words = DENSE[name]
    legal = dense_arguments(impl)
    impl.func(**legal)
    changed = {key: x.to(impl.device) if _movable(x) else x for key, x in change(legal).items()}
    with refuses(*words):
        impl.func(**legal | changed)


def _movable(x: object) -> bool:
    return isinstance(x, Tensor) and x.device.type != "meta"


PACKED: dict[str, tuple[Arguments, list[str]]] = {
    "not monotone": (
        {"cu_seqlens_q": [0, 7, 5, 9], "max_seqlen_q": 100},
        ["cu_seqlens_q", "2", "7", "5"],
    ),
    "not monotone k": (
        {"cu_seqlens_k": [0, 7, 5, 9], "max_seqlen_k": 100},
        ["cu_seqlens_k", "2", "7", "5"],
    ),
    "negative": ({"cu_seqlens_q": [0, -2, 5, 9]}, ["cu_seqlens_q", "-2"]),
    "not from zero": ({"cu_seqlens_q": [1, 5, 6, 9]}, ["cu_seqlens_q", "1", "0"]),
    "last too small": ({"cu_seqlens_q": [0, 2, 5, 8]}, ["cu_seqlens_q", "8", "9"]),
    "last too large": (
        {"cu_seqlens_k": [0, 2, 5, 10], "max_seqlen_k": 100},
        ["cu_seqlens_k", "10", "9"],
    ),
    "huge": ({"cu_seqlens_k": [0, 2, 2**31 - 1, 9]}, ["seqlen_k", str(2**31 - 3)]),
    "max_seqlen_q small": ({"max_seqlen_q": 3}, ["max_seqlen_q", "3", "4"]),
    "max_seqlen_k small": ({"max_seqlen_k": 3}, ["max_seqlen_k", "3", "4"]),
    "max_seqlen_q negative": ({"max_seqlen_q": -1}, ["max_seqlen_q", "-1"]),
    "max_seqlen_q a string": ({"max_seqlen_q": "4"}, ["max_seqlen_q", "'4'"]),
    "one shorter": ({"cu_seqlens_k": [0, 9]}, ["cu_seqlens_k", "(2)", "(batch + 1,)", "(4)"]),
    "empty": ({"cu_seqlens_q": []}, ["cu_seqlens_q", "(0)", "batch + 1"]),
}


def packed_arguments(impl: Impl) -> Arguments:
    """A legal call of three sequences of 2, 3 and 4 tokens."""
    q, k, v = (randn(9, n, 16).to(impl.device, impl.dtypes[-1]) for n in (4, 4, 2))
    cu = torch.tensor([0, 2, 5, 9], dtype=torch.int32, device=impl.device)
    return {"q": q, "k": k, "v": v, "lam": 0.5, "cu_seqlens_q": cu, "cu_seqlens_k": cu,
            "max_seqlen_q": 4, "max_seqlen_k": 4}  # fmt: skip


@pytest.mark.parametrize("name", list(PACKED))
@pytest.mark.needs("checks_values")
def test_packed_argument(impl: Impl, name: str) -> None:
    changed, words = PACKED[name]
    legal = packed_arguments(impl)
    impl.varlen(**legal)
    for key, value in changed.items():
        listed = isinstance(value, list)
        legal[key] = torch.tensor(value, dtype=torch.int32) if listed else value
    with refuses(*words):
        impl.varlen(**legal)


@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
def test_cu_seqlens_types(impl: Impl, name: str) -> None:
    legal = packed_arguments(impl)
    cu = legal[name]
    with refuses(name, "long", "int"):
        impl.varlen(**legal | {name: cu.long()})
    with refuses(name, "list", "tensor"):
        impl.varlen(**legal | {name: [0, 2, 5, 9]})
    with refuses(name, "device"):
        impl.varlen(**legal | {name: cu.to("meta")})
    with refuses(name, "NoneType"):
        impl.varlen(**legal | {name: None})
    with refuses(name, "(2, 2)"):
        impl.varlen(**legal | {name: cu.reshape(2, 2)})
    lam = randn(2, 9, 2).to(impl.device)
    with refuses("lam", "(2, 9, 2)", "(9, 2)"):
        impl.varlen(**legal | {"lam": lam})


def test_double_backward(impl: Impl) -> None:
    p, named = leaves(make_problem(Case(sq=9, sk=7, dtype=impl.dtypes[0]), impl.device))
    out = impl.func(flat(p.q), flat(p.k), p.v, 0.5)
    (gradient,) = torch.autograd.grad(out.sum(), named["q"], create_graph=True)
    with refuses("double backward"):
        gradient.sum().backward()


def test_vmap_is_refused_or_right(impl: Impl) -> None:
    legal = dense_arguments(impl)
    q = torch.stack([legal["q"], 2 * legal["q"]])

    def one(x: Tensor) -> Tensor:
        out: Tensor = impl.func(x, legal["k"], legal["v"], 0.5)
        return out

    with refuses("vmap"):
        torch.func.vmap(one)(q)
