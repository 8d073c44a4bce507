"""The modules against the papers' formulas, written here from SDPA calls and complex rotary."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffattn_cuda.nn import (
    KVCache,
    MultiheadDiffAttn,
    MultiheadDiffAttnV2,
    lambda_init_fn,
    rotary_tables,
)

F64 = torch.float64
Tables = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]
EMBED, HEADS, DEPTH = 128, 4, 3  # V1: d = 16, V2: d = 32


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (b, s, heads, d): features 2i, 2i+1 are a complex number, turned by the place's angle."""
    z = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    turn = torch.complex(cos, sin)[: x.shape[1], None]
    return torch.view_as_real(z * turn).flatten(-2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, group: int) -> Tensor:
    """q (b, s, H, d), k (b, s, Hk, d), v (b, s, Hk, dv): one ordinary map, KV head h // group."""
    k, v = (torch.stack([t[:, :, h // group] for h in range(q.shape[2])], 1) for t in (k, v))
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True).transpose(1, 2)


def formula_v1(
    x: Tensor, w: Weights, heads: int, kv_heads: int, lambda_init: float, rel_pos: Tables
) -> Tensor:
    """unilm's V1: flat head 2h+c, KV head h // n_rep for both components."""
    b, s, embed = x.shape
    d = embed // heads // 2
    q = rotary((x @ w["q_proj.weight"].T).view(b, s, 2 * heads, d), *rel_pos)
    k = rotary((x @ w["k_proj.weight"].T).view(b, s, 2 * kv_heads, d), *rel_pos)
    v = (x @ w["v_proj.weight"].T).view(b, s, kv_heads, 2 * d)
    o1, o2 = (causal_attention(q[:, :, c::2], k[:, :, c::2], v, heads // kv_heads) for c in (0, 1))
    lam = (
        torch.exp(w["lambda_q1"] @ w["lambda_k1"])
        - torch.exp(w["lambda_q2"] @ w["lambda_k2"])
        + lambda_init
    )
    o = o1 - lam * o2
    o = o / torch.sqrt((o * o).mean(-1, keepdim=True) + 1e-5)
    o = o * w.get("subln.weight", 1.0) * (1 - lambda_init)
    return o.reshape(b, s, embed) @ w["out_proj.weight"].T


def formula_v2(x: Tensor, w: Weights, heads: int, kv_heads: int, rel_pos: Tables) -> Tensor:
    b, s, embed = x.shape
    d = embed // heads
    q = rotary((x @ w["q_proj.weight"].T).view(b, s, 2 * heads, d), *rel_pos)
    k = rotary((x @ w["k_proj.weight"].T).view(b, s, kv_heads, d), *rel_pos)
    v = (x @ w["v_proj.weight"].T).view(b, s, kv_heads, d)
    o = causal_attention(q, k, v, 2 * heads // kv_heads)  # 2·heads ordinary query heads
    lam = 1 / (1 + torch.exp(-(x @ w["lambda_proj.weight"].T)))
    return (o[:, :, 0::2] - lam[..., None] * o[:, :, 1::2]).reshape(b, s, embed) @ w[
        "out_proj.weight"
    ].T


def make(
    version: int, kv_heads: int | None = None, dtype: torch.dtype = F64, **options: Any
) -> Any:
    torch.manual_seed(0)
    if version == 1:
        module = MultiheadDiffAttn(EMBED, DEPTH, HEADS, kv_heads, dtype=dtype, **options)
        if module.subln.weight is not None:
            torch.nn.init.normal_(module.subln.weight, 1.0, 0.2)
        return module
    return MultiheadDiffAttnV2(EMBED, HEADS, kv_heads, dtype=dtype, **options)


def tables(module: Any, seqlen: int, dtype: torch.dtype = F64) -> Tables:
    return rotary_tables(seqlen, module.head_dim, dtype=dtype)


@pytest.mark.parametrize("implementation", ["fused", "eager"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("version", [1, 2])
def test_output_and_gradients_match_the_formula(
    version: int, kv_heads: int, implementation: str
) -> None:
    module = make(version, kv_heads, implementation=implementation)
    x = torch.randn(2, 19, EMBED, dtype=F64, requires_grad=True)
    rel_pos = tables(module, 19)
    weights = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    if version == 1:
        want = formula_v1(x, weights, HEADS, kv_heads, lambda_init_fn(DEPTH), rel_pos)
    else:
        want = formula_v2(x, weights, HEADS, kv_heads, rel_pos)
    got = module(x, rel_pos)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(want)
    names = list(weights)
    expected = torch.autograd.grad(want, [x, *weights.values()], cotangent)
    actual = torch.autograd.grad(got, [x, *module.parameters()], cotangent)
    for name, a, e in zip(["x", *names], actual, expected, strict=True):
        assert e.abs().max() > 0, name
        error = (a - e).abs().max()
        assert error < 1e-9 * e.abs().max(), (name, error)


def test_state_dict_has_unilms_names() -> None:
    shapes = {n: tuple(p.shape) for n, p in make(1, 2).state_dict().items()}
    assert shapes == {
        "q_proj.weight": (128, 128), "k_proj.weight": (64, 128), "v_proj.weight": (64, 128),
        "out_proj.weight": (128, 128), "subln.weight": (32,),
        "lambda_q1": (16,), "lambda_k1": (16,), "lambda_q2": (16,), "lambda_k2": (16,),
    }  # fmt: skip
    assert "subln.weight" not in make(1, norm_affine=False).state_dict()


@pytest.mark.parametrize("depth, value", [(0, 0.2), (1, 0.3555090), (6, 0.7008207)])
def test_lambda_init_of_a_depth(depth: int, value: float) -> None:
    assert lambda_init_fn(depth) == pytest.approx(value, abs=1e-6)


def test_lambda_init_override_and_no_affine() -> None:
    module = make(1, lambda_init=-0.01, norm_affine=False)
    x, rel_pos = torch.randn(1, 9, EMBED, dtype=F64), tables(module, 9)
    want = formula_v1(x, dict(module.named_parameters()), HEADS, HEADS, -0.01, rel_pos)
    torch.testing.assert_close(module(x, rel_pos), want, rtol=1e-10, atol=1e-12)


def test_lambda_is_rounded_only_when_asked() -> None:
    exact = make(1, dtype=torch.float32)
    rounded = make(1, dtype=torch.float32, lambda_dtype=torch.bfloat16)
    e1 = torch.exp(exact.lambda_q1 @ exact.lambda_k1)
    e2 = torch.exp(exact.lambda_q2 @ exact.lambda_k2)
    lam, lam_bf16 = exact.lambda_full(), rounded.lambda_full()
    torch.testing.assert_close(lam, e1 - e2 + lambda_init_fn(DEPTH))
    assert lam_bf16 == (e1.bfloat16() - e2.bfloat16() + lambda_init_fn(DEPTH)).float()
    assert lam_bf16.bfloat16() == lam_bf16 and lam.bfloat16() != lam


@pytest.mark.parametrize("window", [(-1, -1), (5, 0)])
@pytest.mark.parametrize("with_rotary", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("version", [1, 2])
def test_prefill_and_decode_equal_the_full_forward(
    version: int, kv_heads: int, with_rotary: bool, window: tuple[int, int]
) -> None:
    """Chunks of 7, 1, 1, 4, 1 tokens through the cache; its unused slots are NaN throughout."""
    module = make(version, kv_heads, window_size=window)
    x, capacity = torch.randn(2, 14, EMBED, dtype=F64), 17
    rel_pos = tables(module, capacity) if with_rotary else None
    cache = module.make_cache(2, capacity)
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    with torch.no_grad():
        want = module(x, rel_pos)
        chunks = [module(part, rel_pos, cache) for part in x.split([7, 1, 1, 4, 1], dim=1)]
    torch.testing.assert_close(torch.cat(chunks, 1), want, rtol=1e-10, atol=1e-12)
    assert cache.seqlens.tolist() == [14, 14]
    assert cache.k[:, 14:].isnan().all() and not cache.k[:, :14].isnan().any()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "options, rows_that_see_token_5",
    [
        ({}, [5, 6, 7, 8]),
        ({"window_size": (2, 0)}, [5, 6, 7]),
        ({"causal": False}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"causal": False, "window_size": (1, 2)}, [3, 4, 5, 6]),
    ],
)
@torch.no_grad()
def test_who_sees_a_token(
    version: int, options: dict[str, Any], rows_that_see_token_5: list[int]
) -> None:
    module = make(version, **options)
    x = torch.randn(1, 9, EMBED, dtype=F64)
    changed = x.clone()
    changed[:, 5] += 1
    difference = (module(x) - module(changed)).abs().amax((0, 2))
    assert difference.gt(1e-6).nonzero().flatten().tolist() == rows_that_see_token_5
    assert difference[difference <= 1e-6].eq(0).all()


@pytest.mark.parametrize("version", [1, 2])
def test_sequences_of_a_cache_may_differ_in_length(version: int) -> None:
    module = make(version)
    x = torch.randn(2, 6, EMBED, dtype=F64)
    rel_pos, cache = tables(module, 8), module.make_cache(2, 8)
    with torch.no_grad():
        module(x[:, :5], rel_pos, cache)
        cache.seqlens = torch.tensor([5, 2], dtype=torch.int32)  # rewind the second to two tokens
        got = module(x[:, 5:], rel_pos, cache)
        for row, length in enumerate((5, 2)):
            sequence = torch.cat([x[row, :length], x[row, 5:]])[None]
            want = module(sequence, rel_pos)[:, -1:]
            torch.testing.assert_close(got[row : row + 1], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_greedy_tokens_are_the_same_with_the_cache(version: int) -> None:
    module = make(version, 2, torch.float32)
    module.q_proj.weight *= 8  # sharp attention: an untrained model would repeat one token
    embed, head = torch.nn.Embedding(50, EMBED), torch.nn.Linear(EMBED, 50)
    rel_pos, cache = tables(module, 40, torch.float32), module.make_cache(2, 40)

    def choose(tokens: Tensor, *cache: KVCache) -> Tensor:
        return head(module(embed(tokens), rel_pos, *cache))[:, -1:].argmax(-1)

    tokens = cached = torch.randint(50, (2, 7))
    new = cached
    for _ in range(33):
        tokens = torch.cat([tokens, choose(tokens)], 1)
        new = choose(new, cache)
        cached = torch.cat([cached, new], 1)
    assert torch.equal(tokens, cached)
    assert tokens[:, 7:].unique().numel() > 20, "too dull to tell the two ways apart"


@pytest.mark.parametrize("version", [1, 2])
def test_bf16(version: int) -> None:
    module = make(version)
    x = torch.randn(2, 33, EMBED, dtype=F64).bfloat16()
    low = copy.deepcopy(module).bfloat16()
    exact = copy.deepcopy(low).double()  # the same rounded weights
    rel_pos = tables(module, 33)
    want = exact(x.double(), rel_pos)
    got = low(x, tuple(t.bfloat16() for t in rel_pos))
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).norm() < 0.03 * want.norm()
    got.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in low.parameters())


@pytest.mark.parametrize("version", [1, 2])
def test_compiles_to_one_graph(version: int) -> None:
    check_one_graph(make(version, 2, dtype=torch.float32))


def check_one_graph(module: Any) -> None:
    """Forward, backward and decoding, compiled and not."""
    x, rel_pos = torch.randn(2, 9, EMBED), tables(module, 9, torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, rel_pos), module(x, rel_pos))
    compiled(x, rel_pos).sum().backward()
    assert module.q_proj.weight.grad is not None
    cache = module.make_cache(2, 9)
    with torch.no_grad():
        decoded = [compiled(part, rel_pos, cache) for part in x.split([6, 1, 1, 1], dim=1)]
        torch.testing.assert_close(torch.cat(decoded, 1), module(x, rel_pos))
    assert cache.seqlens.tolist() == [9, 9]


def test_head_dim_of_v2_may_differ_from_embed_dim_over_heads() -> None:
    module = MultiheadDiffAttnV2(EMBED, HEADS, 2, head_dim=8)
    assert module(torch.randn(1, 3, EMBED)).shape == (1, 3, EMBED)
    assert {n: tuple(p.shape) for n, p in module.state_dict().items()} == {
        "q_proj.weight": (64, 128), "k_proj.weight": (16, 128), "v_proj.weight": (16, 128),
        "out_proj.weight": (128, 32), "lambda_proj.weight": (4, 128),
    }  # fmt: skip


def test_cache_shapes() -> None:
    v1, v2 = make(1, 2).make_cache(3, 10), make(2, 2).make_cache(3, 10, dtype=torch.bfloat16)
    assert isinstance(v1, KVCache)
    assert v1.k.shape == (3, 10, 4, 16) and v1.v.shape == (3, 10, 2, 32) and v1.k.dtype == F64
    assert v2.k.shape == (3, 10, 2, 32) and v2.v.shape == (3, 10, 2, 32)
    assert v2.v.dtype == torch.bfloat16 and v2.seqlens.tolist() == [0, 0, 0]
