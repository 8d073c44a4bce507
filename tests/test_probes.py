"""Probes with exact answers: which keys were seen, and with what weight."""

from __future__ import annotations

import pytest
import torch
from support.case import DTYPES, short
from support.impls import Impl
from torch import Tensor

EDGES = [0, 1, 7, 15, 16, 31, 32, 47, 48, 63, 64, 65, 95, 96, 127, 128, 129, 191, 192, 255, 256]


def equal_logits(impl: Impl, dtype: torch.dtype, sq: int, sk: int, d: int) -> tuple[Tensor, Tensor]:
    """q and k for two heads whose logits are all zero: every visible key weighs the same."""
    q = torch.zeros(1, sq, 4, d, dtype=dtype, device=impl.device)
    k = torch.randn(1, sk, 4, d).to(impl.device, dtype)
    return q, k


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("lam", [0.0, 1.0, -1.0, 0.5, 2.0], ids=str)
@pytest.mark.parametrize("sk", [1, 2, 16, 64, 128, 256])
def test_equal_logits_and_integer_values_are_exact(
    impl: Impl, dtype: torch.dtype, lam: float, sk: int
) -> None:
    """With 2^n keys of equal weight and integers for V, every step is exact in every dtype.

    P = 1 exactly, the sums are small integers, the division is by a power of two, and (1 - lambda)
    times the mean has few bits: one wrong weight changes the answer.
    """
    q, k = equal_logits(impl, dtype, 20, sk, 32)
    v = torch.randint(-4, 5, (1, sk, 2, 64))
    v[:, -1] -= v.sum(1) % max(sk // 8, 1)  # so that the mean has three binary places
    v = v.to(impl.device, dtype)
    out = impl.func(q, k, v, lam)
    mean = v.double().mean(1, keepdim=True)
    exact = ((1 - lam) * mean).to(dtype).expand_as(out)
    assert torch.equal(out, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    "window", [(-1, -1), (0, 0), (5, 3), (16, -1), (-1, 15), (64, 64)], ids=str
)
@pytest.mark.parametrize(("sq", "sk"), [(65, 128), (128, 128), (100, 63), (1, 128)])
def test_one_hot_values_count_the_keys_seen(
    impl: Impl, dtype: torch.dtype, causal: bool, window: tuple[int, int], sq: int, sk: int
) -> None:
    """V is the identity, so column j of a row is key j's weight: 1/n if seen, 0 if not."""
    q, k = equal_logits(impl, dtype, sq, sk, 64)
    v = torch.eye(sk, 128, device=impl.device, dtype=dtype)[None, :, None].expand(1, sk, 2, 128)
    out = impl.func(q, k, v, 0.0, causal=causal, window_size=window)
    seen = torch.zeros(sq, sk, dtype=torch.float64)
    for i in range(sq):  # the design's sentence, key by key
        middle = i + sk - sq
        first = 0 if window[0] < 0 else max(0, middle - window[0])
        last = sk - 1 if window[1] < 0 else min(sk - 1, middle + window[1])
        last = min(last, middle) if causal else last
        seen[i, first : max(last + 1, first)] = 1
    weights = out[0, :, 0, :sk].cpu().double()
    assert torch.equal(weights != 0, seen != 0)
    expected = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(weights, expected, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("component", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_a_giant_logit_selects_its_key(impl: Impl, dtype: torch.dtype, component: int) -> None:
    """One key at each tile edge owns one row of one component: the output is its V, exactly."""
    sk, d = 258, 32
    q = torch.zeros(1, len(EDGES), 2, d)
    k = torch.zeros(1, sk, 2, d)
    for row, key in enumerate(EDGES):  # a private direction for each row
        q[0, row, component, row] = 64.0
        k[0, key, component, row] = 64.0
    half = torch.randint(1, 128, (1, sk // 2, 1, 64))
    v = torch.stack([half, -half], 2).flatten(1, 2)  # mean 0: what the other, uniform map returns
    q, k, v = (x.to(impl.device, dtype) for x in (q, k, v))
    out = impl.func(q, k, v, float(component), softmax_scale=1.0)[0, :, 0]
    chosen = (1 - 2 * component) * v[0, EDGES, 0]
    torch.testing.assert_close(out, chosen, rtol=0, atol=component * 512 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("position", EDGES)
def test_a_giant_logit_in_every_position_of_a_row(impl: Impl, position: int) -> None:
    """The running maximum jumps at each tile edge in turn, in a row of otherwise ordinary keys."""
    dtype = impl.dtypes[-1]
    q, k = torch.ones(1, 3, 2, 16), 0.1 * torch.randn(1, 257, 2, 16)
    k[:, position] = 30.0
    v = torch.randint(1, 100, (1, 257, 1, 32))  # not 0: fp64 holds exp(-480)
    q, k, v = (x.to(impl.device, dtype) for x in (q, k, v))
    out, lse = impl.func(q, k, v, 0.25, softmax_scale=1.0, return_lse=True)
    expected = (0.75 * v[0, position, 0].double()).to(dtype)
    assert torch.equal(out[0, :, 0], expected.expand(3, 32))
    expected_lse = torch.full((2, 1, 1, 3), 480.0, dtype=lse.dtype)
    rtol = 2 * torch.finfo(lse.dtype).eps  # its way may lead through the logarithm to base 2
    torch.testing.assert_close(lse.cpu(), expected_lse, rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_each_query_head_reads_its_key_head(impl: Impl, dtype: torch.dtype) -> None:
    """GQA: head h reads KV head h // group, in both components (the trap of unilm's naive file)."""
    heads, heads_k, sk, d = 6, 2, 16, 16
    q = torch.ones(1, 1, 2 * heads, d)
    k = torch.zeros(1, sk, 2 * heads_k, d)
    for flat_head in range(2 * heads_k):  # each key head points at its own position
        k[0, flat_head, flat_head] = 40.0
    v = torch.arange(1, sk * heads_k + 1).reshape(1, sk, heads_k, 1).expand(-1, -1, -1, d)
    q, k, v = (x.to(impl.device, dtype) for x in (q, k, v))
    out = impl.func(q, k, v, 0.5, softmax_scale=1.0)[0, 0, :, 0]
    expected = [
        float(v[0, 2 * (h // 3), h // 3, 0]) - 0.5 * float(v[0, 2 * (h // 3) + 1, h // 3, 0])
        for h in range(heads)
    ]
    assert out.tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_lambda_reaches_its_own_token_and_head(impl: Impl, dtype: torch.dtype) -> None:
    """With equal maps and V = 1 the output is 1 - lambda of that token and head, exactly."""
    q = torch.ones(2, 33, 6, 16, device=impl.device, dtype=dtype)
    k = torch.ones(2, 64, 6, 16, device=impl.device, dtype=dtype)
    v = torch.ones(2, 64, 3, 16, device=impl.device, dtype=dtype)
    lam = torch.arange(2 * 33 * 3, device=impl.device).reshape(2, 33, 3) / 256
    out = impl.func(q, k, v, lam)
    assert torch.equal(out, (1 - lam).to(dtype)[..., None].expand_as(out))
    by_head = lam[0, 7]
    assert torch.equal(
        impl.func(q, k, v, by_head)[..., 0], (1 - by_head).to(dtype).expand(2, 33, 3)
    )
