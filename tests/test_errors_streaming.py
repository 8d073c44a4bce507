"""Sinks and streaming heads that are not accepted, by each of the three functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import Case
from support.data import flat, make_problem
from support.impls import Impl
from test_errors_options import legal
from test_raw_ops import forward_arguments

pytestmark = pytest.mark.needs("has_ops")
FUNCTION = pytest.mark.parametrize("function", ["func", "varlen", "kv"])
WINDOW: dict[str, Any] = {"causal": True, "window_size": (3, 0)}
TWO = [True, False]

# Of calls with two KV heads.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sink_size": torch.tensor(4)}, "sink_size is a tensor, .* λ does what that would do"),
    ({"sink_size": -1}, "sink_size is -1, accepted: an integer >= 0"),
    ({"sink_size": 1.5}, "sink_size is 1.5 .*an integer >= 0"),
    ({"sink_size": True}, "sink_size is True .*an integer >= 0"),
    ({"sink_size": 4, "causal": False}, "sink_size was given with causal=False"),
    ({"streaming_heads": TWO, "causal": False}, "streaming_heads was given with causal=False"),
    ({"streaming_heads": [True]}, "streaming_heads has 1 entries, accepted: .* 2 KV heads"),
    ({"streaming_heads": [True] * 3}, "streaming_heads has 3 entries, accepted: .* 2 KV heads"),
    ({"streaming_heads": 1}, "streaming_heads is 1, accepted: .* 2 KV heads"),
    ({"streaming_heads": [1, 0]}, r"streaming_heads is \[1, 0\], accepted: .* a bool for each"),
    ({"streaming_heads": torch.ones(2, dtype=torch.bool, device="meta")},
     "streaming_heads is on device meta, where reading it would wait"),
]  # fmt: skip


@FUNCTION
@pytest.mark.parametrize("options, said", WRONG)
def test_what_is_wrong(impl: Impl, function: str, options: dict[str, Any], said: str) -> None:
    call, arguments = legal(impl, function, heads_k=2)
    call(**arguments, **WINDOW, sink_size=1, streaming_heads=TWO)
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        call(**arguments, **WINDOW | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nheads_k", [64, 65])
def test_more_heads_than_bits(impl: Impl, nheads_k: int) -> None:
    """64 can be told apart; of more, all stream or none."""
    case = Case(batch=1, sq=4, sk=4, heads=nheads_k, heads_k=nheads_k, d=8, dv=16, lam="float",
                dtype=impl.dtypes[-1])  # fmt: skip
    p = make_problem(case, impl.device)
    heads = [True] * (nheads_k - 1) + [False]

    def call(**options: Any) -> torch.Tensor:
        out: torch.Tensor = impl.func(flat(p.q), flat(p.k), p.v, 0.5, causal=True, **options)
        return out

    streaming = call(window_size=(1, 0), sink_size=1)
    if nheads_k > 64:
        with pytest.raises(ValueError, match="streaming_heads is given for 65 KV heads, .* 64"):
            call(window_size=(1, 0), sink_size=1, streaming_heads=heads)
    else:
        mixed = call(window_size=(1, 0), sink_size=1, streaming_heads=heads)
        assert torch.equal(mixed[:, :, :-1], streaming[:, :, :-1])
        assert torch.equal(mixed[:, :, -1], call()[:, :, -1])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"window_right": 0, "sink_size": -1}, "sink_size is -1, expected >= 0"),
        ({"sink_size": 4}, "need a causal mask"),
        ({"streaming_heads": 1}, "need a causal mask"),
    ],
)
def test_raw_ops_check_too(impl: Impl, options: dict[str, Any], said: str) -> None:
    arguments = forward_arguments(impl)
    torch.ops.diffattn.fwd(**arguments)
    with pytest.raises(RuntimeError, match=said):
        torch.ops.diffattn.fwd(**arguments | options)
