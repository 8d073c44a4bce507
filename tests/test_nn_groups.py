"""Modules with signal_per_noise equal the ordinary module whose q_proj repeats the noise's rows."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from test_duo import RECENT, SEQLEN, SINK
from test_nn import EMBED, F64, HEADS, check_one_graph, tables

from diffattn_cuda import duo
from diffattn_cuda.nn import MultiheadDiffAttn, MultiheadDiffAttnV2

VERSION = pytest.mark.parametrize("version", [1, 2])
# signals to a noise, KV heads: all groups of one KV head, each group with its own, and r = 1
COUNTS = pytest.mark.parametrize(("r", "kv_heads"), [(2, 1), (2, None), (4, 1), (1, 2)])


def make(version: int, r: int, kv_heads: int | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"dtype": F64, "signal_per_noise": r} | options
    if version == 1:
        return MultiheadDiffAttn(EMBED, 3, HEADS, kv_heads, **options)
    return MultiheadDiffAttnV2(EMBED, HEADS, kv_heads, **options)


def ordinary(version: int, module: Any, **options: Any) -> Any:
    """With its weights; the rows of a group's noise stand behind those of each of its signals."""
    r, d, dtype = module.signal_per_noise, module.head_dim, module.q_proj.weight.dtype
    pairs = make(version, 1, module.num_kv_heads, dtype=dtype, **options)
    state = module.state_dict()
    rows = state["q_proj.weight"].unflatten(0, (-1, r + 1, d))
    signals, noise = rows[:, :r], rows[:, r:].expand(-1, r, -1, -1)
    state["q_proj.weight"] = torch.stack((signals, noise), 2).flatten(0, 3)
    pairs.load_state_dict(state)
    return pairs


@VERSION
@COUNTS
@pytest.mark.parametrize("implementation", ["fused", "eager"])
def test_output_and_gradients(
    version: int, r: int, kv_heads: int | None, implementation: str
) -> None:
    module = make(version, r, kv_heads, implementation=implementation)
    pairs = ordinary(version, module)
    x, rel_pos = torch.randn(2, 19, EMBED, dtype=F64), tables(module, 19)
    cotangent = torch.randn(2, 19, EMBED, dtype=F64)
    outs, gradients = [], []
    for one in (module, pairs):
        out = one(x, rel_pos)
        grads = torch.autograd.grad(out, list(one.parameters()), cotangent)
        outs.append(out)
        gradients.append(dict(zip(one.state_dict(), grads, strict=True)))
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-12)
    q = gradients[1]["q_proj.weight"].unflatten(0, (-1, r, 2, module.head_dim))
    gradients[1]["q_proj.weight"] = torch.cat((q[:, :, 0], q[:, :, 1].sum(1, True)), 1).flatten(
        0, 2
    )
    for name, want in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], want, rtol=1e-9, atol=1e-11, msg=name)


def test_shapes_of_motif() -> None:
    """Motif-2-12.7B in small: 40 heads of q, 16 of k, 8 of twice the width in v, 32 outputs."""
    module = MultiheadDiffAttn(64, 0, 32, head_dim=8, signal_per_noise=4)
    shapes = {n: tuple(p.shape) for n, p in module.state_dict().items()}
    assert shapes == {
        "q_proj.weight": (40 * 8, 64), "k_proj.weight": (16 * 8, 64), "v_proj.weight": (128, 64),
        "out_proj.weight": (64, 32 * 16), "subln.weight": (16,),
        "lambda_q1": (8,), "lambda_k1": (8,), "lambda_q2": (8,), "lambda_k2": (8,),
    }  # fmt: skip
    assert module(torch.randn(1, 3, 64)).shape == (1, 3, 64)
    cache = module.make_cache(3, 10)
    assert cache.k.shape == (3, 10, 16, 8) and cache.v.shape == (3, 10, 8, 16)
    assert "signal_per_noise=4" in repr(module)
    v2 = MultiheadDiffAttnV2(64, 4, signal_per_noise=2)
    assert (v2.num_kv_heads, tuple(v2.lambda_proj.weight.shape)) == (2, (4, 64))
    assert v2.k_proj.weight.shape == v2.v_proj.weight.shape == (2 * 16, 64)


@VERSION
@COUNTS
@pytest.mark.parametrize("implementation", ["fused", "eager"])
@torch.no_grad()
def test_prefill_and_decode(
    version: int, r: int, kv_heads: int | None, implementation: str
) -> None:
    module = make(version, r, kv_heads, implementation=implementation)
    x, rel_pos = torch.randn(2, 14, EMBED, dtype=F64), tables(module, 17)
    cache = module.make_cache(2, 17)
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    chunks = [module(part, rel_pos, cache) for part in x.split([7, 1, 1, 4, 1], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, 1), module(x, rel_pos), rtol=1e-10, atol=1e-12)
    assert cache.seqlens.tolist() == [14, 14] and not cache.k[:, :14].isnan().any()


@VERSION
@pytest.mark.parametrize("streaming", [None, [True, False]])
@torch.no_grad()
def test_streaming_caches(version: int, streaming: list[bool] | None) -> None:
    """A ring holds KV heads, whole groups of maps."""
    mask: dict[str, Any] = {"window_size": (15, 0), "sink_size": 5, "streaming_heads": streaming}
    module, plain = (make(version, 2, **options) for options in (mask, {}))
    x, rel_pos = torch.randn(2, 50, EMBED, dtype=F64), tables(module, 60)
    want = ordinary(version, module, **mask)(x, rel_pos)
    torch.testing.assert_close(module(x, rel_pos), want, rtol=1e-9, atol=1e-11)
    for one, options in ((module, {"max_new": 4}), (plain, {"sink": 5, "recent": 16})):
        cache = one.make_cache(2, 60, **({"streaming_heads": streaming} | options))
        out = [one(part, rel_pos, cache) for part in x.split([40, 1, 1, 4, 4], dim=1)]
        torch.testing.assert_close(torch.cat(out, 1), want, rtol=1e-9, atol=1e-11)


@VERSION
def test_compiles_to_one_graph(version: int) -> None:
    check_one_graph(make(version, 2, dtype=torch.float32))


@VERSION
def test_autocast_and_bf16(version: int) -> None:
    module = make(version, 4, dtype=torch.float32)
    x, rel_pos = torch.randn(2, 33, EMBED), tables(module, 40, torch.float32)
    want = copy.deepcopy(module).double()(x.double(), rel_pos)
    with torch.autocast("cpu", torch.bfloat16):
        cache = module.make_cache(2, 40, dtype=torch.bfloat16)
        outs = [module(x, rel_pos)]
        with torch.no_grad():
            parts = [module(part, rel_pos, cache) for part in x.split([30, 3], dim=1)]
    low = copy.deepcopy(module).bfloat16()
    outs += [torch.cat(parts, 1), low(x.bfloat16(), rel_pos)]
    for out in outs:
        assert out.dtype == torch.bfloat16
        assert (out.double() - want).norm() < 0.03 * want.norm()
    for out, one in ((outs[0], module), (outs[2], low)):
        out.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters())


@VERSION
def test_gates_and_scores_of_streaming_heads(version: int) -> None:
    module = make(version, 2, dtype=torch.float32)
    pairs = ordinary(version, module)
    x = torch.randn(2, SEQLEN, EMBED)
    scores = [duo.attention_scores(one, x, SINK, RECENT) for one in (module, pairs)]
    assert scores[0].shape == (1, 2)
    torch.testing.assert_close(*scores)
    assert scores[0][0, 0] != scores[0][0, 1]
    outs = []
    for one in (module, pairs):
        gates = duo.HeadGates(one, SINK, RECENT)
        gates.alpha.data[0, 1] = 0.25
        outs.append(one(x))
    torch.testing.assert_close(*outs)


@VERSION
@pytest.mark.parametrize(
    ("heads", "kv_heads", "r", "message"),
    [
        (4, None, 0, "signal_per_noise is 0; accepted: 1 to 8"),
        (18, None, 9, "signal_per_noise is 9; accepted: 1 to 8"),
        (4, None, 3, "num_heads is 4; it must be a multiple of signal_per_noise = 3"),
        (8, 4, 4, "num_kv_heads is 4; it must divide the number of groups, num_heads / "
                  "signal_per_noise, which is 2"),
        (8, 0, 4, "num_kv_heads is 0; it must divide the number of groups"),
    ],
)  # fmt: skip
def test_wrong_counts(version: int, heads: int, kv_heads: int | None, r: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        if version == 1:
            MultiheadDiffAttn(144, 0, heads, kv_heads, head_dim=8, signal_per_noise=r)
        else:
            MultiheadDiffAttnV2(144, heads, kv_heads, head_dim=8, signal_per_noise=r)


@pytest.mark.parametrize("value", [torch.tensor(2), 2.0, "2", None])
def test_what_is_no_number_of_signals(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^signal_per_noise is .*, accepted: an integer"):
        MultiheadDiffAttn(64, 0, 4, signal_per_noise=value)


@torch.no_grad()
def test_a_cache_of_ungrouped_heads_is_refused() -> None:
    """An ordinary module of as many outputs has r times the KV heads."""
    cache = make(1, 1).make_cache(1, 8)
    with pytest.raises(
        ValueError, match=r"cache.k has shape .*expected \(batch, capacity, 4, 16\)"
    ):
        make(1, 2)(torch.zeros(1, 1, EMBED, dtype=F64), cache=cache)
