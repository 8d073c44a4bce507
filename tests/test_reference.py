"""reference.py against scalar loops over the paper's formula, hand-computed values, gradcheck."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from diffattn_cuda import reference as ref

F64 = torch.float64
Window = tuple[int, int]


def sees(i: int, j: int, sq: int, sk: int, causal: bool, window: Window) -> bool:
    """The mask in words: bottom-right aligned, window inclusive, negative = unlimited."""
    left, right = window
    row = i + sk - sq
    if causal and j > row:
        return False
    if left >= 0 and j < row - left:
        return False
    return not (right >= 0 and not causal and j > row + right)


def one_row(
    q_row: list[float], keys: list[list[float]], values: list[list[float]], scale: float
) -> tuple[list[float] | None, float]:
    """softmax(scale·q·K)·V and log-sum-exp over lists of Python floats."""
    if not keys:
        return None, -math.inf
    s = [scale * sum(a * b for a, b in zip(q_row, key, strict=True)) for key in keys]
    total = sum(math.exp(x) for x in s)
    width = len(values[0])
    out = [
        sum(math.exp(x) * val[e] for x, val in zip(s, values, strict=True)) / total
        for e in range(width)
    ]
    return out, math.log(total)


def brute_force(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lam_of: Callable[[int, int, int], float],
    scale: float,
    causal: bool = False,
    window: Window = (-1, -1),
    weight: Tensor | None = None,
    eps: float | None = None,
    out_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """q (b,sq,2H,d), k (b,sk,2Hk or Hk,d), v (b,sk,Hk,dv) → out, lse.  Nothing is vectorised."""
    b, sq, two_h, _ = q.shape
    sk, hk, dv = v.shape[1:]
    h = two_h // 2
    comps = k.shape[2] // hk
    out = torch.zeros(b, sq, h, dv, dtype=F64)
    lse = torch.zeros(2, b, h, sq, dtype=F64)
    for n, i, head in product(range(b), range(sq), range(h)):
        kv = head // (h // hk)
        seen = [j for j in range(sk) if sees(i, j, sq, sk, causal, window)]
        values = [v[n, j, kv].tolist() for j in seen]
        row = [0.0] * dv
        for c in (0, 1):
            keys = [k[n, j, kv * comps + (c if comps == 2 else 0)].tolist() for j in seen]
            o, lse[c, n, head, i] = one_row(q[n, i, 2 * head + c].tolist(), keys, values, scale)
            sign = 1.0 if c == 0 else -lam_of(n, i, head)
            if o is not None:
                row = [x + sign * y for x, y in zip(row, o, strict=True)]
        if eps is not None:
            rstd = 1 / math.sqrt(sum(x * x for x in row) / dv + eps)
            row = [x * rstd for x in row]
        if weight is not None:
            row = [x * w for x, w in zip(row, weight.tolist(), strict=True)]
        out[n, i, head] = torch.tensor(row, dtype=F64) * out_scale
    return out, lse


def inputs(
    b: int = 2, sq: int = 4, sk: int = 5, h: int = 4, hk: int = 2, d: int = 3, dv: int = 6,
    comps: int = 2, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, dtype=F64, generator=g)  # noqa: E731
    return make(b, sq, 2 * h, d), make(b, sk, comps * hk, d), make(b, sk, hk, dv)


MASKS = [
    (False, (-1, -1)),
    (True, (-1, -1)),
    (True, (1, 5)),
    (False, (1, 0)),
    (False, (-1, 1)),
    (False, (2, -1)),
]


@pytest.mark.parametrize("sq, sk", [(4, 5), (5, 3), (1, 1), (3, 0)])
@pytest.mark.parametrize("causal, window", MASKS)
def test_dense_matches_scalar_loops(sq: int, sk: int, causal: bool, window: Window) -> None:
    q, k, v = inputs(sq=sq, sk=sk)
    out, lse = ref.diff_flash_attn_func(
        q, k, v, 0.7, causal=causal, window_size=window, return_lse=True
    )
    want, want_lse = brute_force(q, k, v, lambda *_: 0.7, 3**-0.5, causal, window)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, want_lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("h, hk", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("comps, dv", [(2, 6), (1, 3)])
def test_head_map(h: int, hk: int, comps: int, dv: int) -> None:
    q, k, v = inputs(h=h, hk=hk, comps=comps, dv=dv)
    out = ref.diff_flash_attn_func(q, k, v, 0.3, softmax_scale=0.9)
    want, _ = brute_force(q, k, v, lambda *_: 0.3, 0.9)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    five = ref.diff_flash_attn_func(
        q.unflatten(2, (h, 2)), k.unflatten(2, (hk, comps)), v, 0.3, 0.9
    )
    assert torch.equal(out, five)


def test_lambda_forms() -> None:
    q, k, v = inputs()
    per_head = torch.tensor([0.0, -0.5, 1.0, 2.0], dtype=F64)
    per_token = torch.rand(2, 4, 4, dtype=F64)
    forms: list[tuple[float | Tensor, Callable[[int, int, int], float]]] = [
        (torch.tensor(0.4, dtype=F64), lambda n, i, h: 0.4),
        (1, lambda n, i, h: 1.0),
        (per_head, lambda n, i, h: per_head[h].item()),
        (per_token, lambda n, i, h: per_token[n, i, h].item()),
    ]
    for lam, lam_of in forms:
        want, _ = brute_force(q, k, v, lam_of, 3**-0.5)
        torch.testing.assert_close(
            ref.diff_flash_attn_func(q, k, v, lam), want, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("weighted", [True, False])
def test_norm_and_out_scale(weighted: bool) -> None:
    q, k, v = inputs()
    w = torch.linspace(0.5, 1.5, 6, dtype=F64) if weighted else None
    out = ref.diff_flash_attn_func(q, k, v, 0.8, norm_weight=w, norm_eps=1e-5, out_scale=0.2)
    want, _ = brute_force(q, k, v, lambda *_: 0.8, 3**-0.5, weight=w, eps=1e-5, out_scale=0.2)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="norm_weight was given without norm_eps"):
        ref.diff_flash_attn_func(q, k, v, 0.8, norm_weight=torch.ones(6, dtype=F64))


def test_values_by_hand() -> None:
    """q1 = 0 weighs both keys ½; q2·k2 = ln 3 weighs them ¾ and ¼.  O = (½−¾λ, ½−¼λ)."""
    q = torch.tensor([[[[0.0], [1.0]]]], dtype=F64)  # (1, 1, 2, 1)
    k = torch.tensor([[[[5.0], [math.log(3)]], [[7.0], [0.0]]]], dtype=F64)  # (1, 2, 2, 1)
    v = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]], dtype=F64)  # one-hot (1, 2, 1, 2)
    out, lse = ref.diff_flash_attn_func(q, k, v, 0.5, softmax_scale=1.0, return_lse=True)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.125, 0.375], dtype=F64))
    torch.testing.assert_close(lse.flatten(), torch.tensor([math.log(2), math.log(4)], dtype=F64))


def test_varlen_is_a_loop_over_sequences() -> None:
    lens_q, lens_k = [3, 0, 2, 1], [4, 2, 0, 1]
    q, k, v = (x[0] for x in inputs(b=1, sq=6, sk=7))
    lam = torch.rand(6, 4, dtype=F64)
    cu_q = torch.tensor([0, 3, 3, 5, 6], dtype=torch.int32)
    cu_k = torch.tensor([0, 4, 6, 6, 7], dtype=torch.int32)
    out, lse = ref.diff_flash_attn_varlen_func(
        q, k, v, lam, cu_q, cu_k, 3, 4, causal=True, return_lse=True
    )
    assert out.shape == (6, 4, 6) and lse.shape == (2, 4, 6)
    start_q = start_k = 0
    for nq, nk in zip(lens_q, lens_k, strict=True):
        rows, keys = slice(start_q, start_q + nq), slice(start_k, start_k + nk)
        lam_of = lambda n, i, h, at=start_q: lam[at + i, h].item()  # noqa: E731
        want, want_lse = brute_force(
            q[None, rows], k[None, keys], v[None, keys], lam_of, 3**-0.5, True
        )
        torch.testing.assert_close(out[rows], want[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse[:, :, rows], want_lse[:, 0], rtol=1e-12, atol=1e-12)
        start_q, start_k = start_q + nq, start_k + nk


def rotate(x: Tensor, position: int, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (heads, d) at one position, pair by pair."""
    out, half = x.clone(), cos.shape[1]
    for p in range(half):
        a, b = (2 * p, 2 * p + 1) if interleaved else (p, p + half)
        c, s = cos[position, p], sin[position, p]
        out[:, a], out[:, b] = x[:, a] * c - x[:, b] * s, x[:, a] * s + x[:, b] * c
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_kvcache(causal: bool, interleaved: bool, paged: bool) -> None:
    """Append + rotary + leftpad (+ paging or cache_batch_idx), with every unused slot NaN."""
    q, k, v = inputs(sq=2, sk=2, d=6, dv=4)
    lens, pads, d, page, capacity = [3, 5], [1, 0], 6, 4, 8
    _, old_k, old_v = inputs(sk=capacity, d=6, dv=4, seed=1)
    angle = torch.rand(capacity, 2, dtype=F64) * 6  # rotary_dim 4 of 6: the last two features pass
    cos, sin = angle.cos(), angle.sin()
    where = [[4, 1], [0, 2]] if paged else [[2], [0]]  # blocks or rows of the cache
    width = page if paged else capacity
    k_cache = torch.full((5, width, 4, d), math.nan, dtype=F64)
    v_cache = torch.full((5, width, 2, 4), math.nan, dtype=F64)
    for n, p in product(range(2), range(capacity)):
        if p < lens[n]:
            slot = where[n][p // width], p % width
            # Left padding holds NaN as well: it must be invisible.
            k_cache[slot] = math.nan if p < pads[n] else old_k[n, p]
            v_cache[slot] = math.nan if p < pads[n] else old_v[n, p]
    before = k_cache.clone()
    table, rows = (torch.tensor(where), None) if paged else (None, torch.tensor([2, 0]))
    out = ref.diff_flash_attn_with_kvcache(
        q, k_cache, v_cache, 0.6, k, v, cos, sin,
        cache_seqlens=torch.tensor(lens, dtype=torch.int32),
        cache_leftpad=torch.tensor(pads, dtype=torch.int32),
        causal=causal, rotary_interleaved=interleaved, cache_batch_idx=rows, block_table=table,
    )  # fmt: skip
    for n in range(2):
        new_k = [rotate(k[n, t], lens[n] + t, cos, sin, interleaved) for t in range(2)]
        new_q = [
            rotate(q[n, t], lens[n] + (t if causal else 0), cos, sin, interleaved) for t in range(2)
        ]
        keys = torch.stack([*old_k[n, pads[n] : lens[n]], *new_k])
        values = torch.stack([*old_v[n, pads[n] : lens[n]], *v[n]])
        want, _ = brute_force(
            torch.stack(new_q)[None], keys[None], values[None], lambda *_: 0.6, d**-0.5, causal
        )
        torch.testing.assert_close(out[n], want[0], rtol=1e-12, atol=1e-12)
        for t in range(2):
            p = lens[n] + t
            slot = where[n][p // width], p % width
            torch.testing.assert_close(k_cache[slot], new_k[t], rtol=1e-12, atol=1e-12)
            assert torch.equal(v_cache[slot], v[n, t])
            before[slot] = k_cache[slot]
    assert torch.equal(k_cache.nan_to_num(9e9), before.nan_to_num(9e9)), (
        "a slot that no sequence owns was written"
    )


def test_kvcache_without_new_keys_reads_only_valid_slots() -> None:
    q, k, v = inputs(sq=1, sk=6, comps=1, dv=3)
    k[0, 2:], v[0, 2:], k[1], v[1] = (math.nan,) * 4
    out, lse = ref.diff_flash_attn_with_kvcache(
        q, k, v, 0.6, cache_seqlens=torch.tensor([2, 0]), return_lse=True
    )
    want, _ = brute_force(q[:1], k[:1, :2], v[:1, :2], lambda *_: 0.6, 3**-0.5)
    torch.testing.assert_close(out[:1], want, rtol=1e-12, atol=1e-12)
    assert (out[1] == 0).all() and (lse[:, 1] == -math.inf).all()


def test_kvcache_takes_any_table_entry_that_no_row_sees() -> None:
    q, keys, values = torch.randn(1, 1, 2, 8), torch.randn(3, 4, 2, 8), torch.randn(3, 4, 1, 8)
    window = {"window_size": (1, 0), "causal": True}
    results = []
    for hidden in (1, -1, 10**6):
        table = torch.tensor([[hidden, 2]], dtype=torch.int32)
        options = {"cache_seqlens": 7, "block_table": table, **window}
        results.append(ref.diff_flash_attn_with_kvcache(q, keys, values, 0.5, **options))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_kvcache_full_by_default_and_refusals() -> None:
    q, k, v = inputs()
    want, _ = brute_force(q, k, v, lambda *_: 0.6, 3**-0.5)
    torch.testing.assert_close(
        ref.diff_flash_attn_with_kvcache(q, k, v, 0.6), want, rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ValueError, match="cache_seqlens is None"):
        ref.diff_flash_attn_with_kvcache(q, k, v, 0.6, k[:, :1], v[:, :1])
    with pytest.raises(ValueError, match="rotary_cos was given without k"):
        ref.diff_flash_attn_with_kvcache(
            q, k, v, 0.6, rotary_cos=torch.ones(9, 1), rotary_sin=torch.ones(9, 1)
        )


@pytest.mark.parametrize(
    "sq, sk, causal, window",
    [
        (3, 3, False, (-1, -1)),
        (4, 2, True, (-1, -1)),
        (3, 4, False, (0, 1)),
        (2, 0, False, (-1, -1)),
    ],
)
@pytest.mark.parametrize("lam_shape", [(), (2,), (1, None, 2)])
def test_gradcheck(
    sq: int, sk: int, causal: bool, window: Window, lam_shape: tuple[int | None, ...]
) -> None:
    """Every differentiable argument, output and LSE; (4, 2, causal) has rows that see no key."""
    q, k, v = inputs(b=1, sq=sq, sk=sk, h=2, hk=1, d=2, dv=4)
    lam = torch.rand([sq if n is None else n for n in lam_shape], dtype=F64)
    w = torch.rand(4, dtype=F64)
    leaves = [x.requires_grad_() for x in (q, k, v, lam, w)]

    def f(q: Tensor, k: Tensor, v: Tensor, lam: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = ref.diff_flash_attn_func(
            q, k, v, lam, None, causal, window, w, 1e-3, 0.7, return_lse=True
        )
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(f, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype) -> None:
    q, k, v = inputs(d=8, dv=16)
    want = ref.diff_flash_attn_func(q, k, v, 0.5)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out, lse = ref.diff_flash_attn_func(q, k, v, 0.5, return_lse=True)
    assert out.dtype == dtype and lse.dtype == torch.float32
    error = (out.double() - want).norm() / want.norm()
    assert error < 8 * torch.finfo(dtype).eps, error
