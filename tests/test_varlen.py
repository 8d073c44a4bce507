"""Packed sequences: each equals the dense function on that sequence alone; nothing leaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.case import DTYPES, Case, short
from support.checks import check_answer
from support.data import Problem, flat, make_problem
from support.impls import Impl
from torch import Tensor

DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=short)
LENGTHS = {
    "even": ([16, 64, 33], [16, 64, 33]),
    "zeros": ([0, 17, 0, 65, 1, 0], [0, 17, 0, 65, 1, 0]),
    "no_queries": ([5, 0, 7], [9, 30, 7]),
    "no_keys": ([5, 30, 7], [5, 0, 7]),
    "longer_q": ([40, 70], [11, 64]),
    "longer_k": ([11, 1, 64], [40, 129, 65]),
    "one": ([127], [127]),
    "none": ([], []),
    "all_empty": ([0, 0], [0, 0]),
}
PACKS = pytest.mark.parametrize("pack", list(LENGTHS))


class Packed:
    """Sequences packed back to back, with `slack` NaN rows after the last one's storage."""

    def __init__(self, case: Case, pack: str, impl: Impl) -> None:
        self.lengths = LENGTHS[pack]
        total_q, total_k = (max(sum(lengths), 1) for lengths in self.lengths)
        wide = case.but(batch=1, sq=total_q, sk=total_k)
        drawn = make_problem(wide, impl.device)
        total_q, total_k = (sum(lengths) for lengths in self.lengths)
        lam = drawn.lam[:, :total_q] if case.lam in ("token", "narrow") else drawn.lam  # type: ignore[index]
        self.dense = drawn.but(
            q=drawn.q[:, :total_q],
            k=drawn.k[:, :total_k],
            v=drawn.v[:, :total_k],
            dout=drawn.dout[:, :total_q],
            lam=lam,
        )
        self.cu_q, self.cu_k = (_cumulative(lengths, impl) for lengths in self.lengths)

    def lam(self) -> Any:
        lam = self.dense.lam
        return lam[0] if isinstance(lam, Tensor) and lam.dim() == 3 else lam

    def call(self, impl: Impl, *qkv_lam: Any, **extra: Any) -> Any:
        longest = [max(lengths, default=0) for lengths in self.lengths]
        options = self.dense.options() | extra
        return impl.varlen(*qkv_lam, self.cu_q, self.cu_k, *longest, **options)

    def run(self, impl: Impl, **extra: Any) -> Any:
        p = self.dense
        return self.call(impl, flat(p.q[0]), flat(p.k[0]), p.v[0], self.lam(), **extra)

    def sequences(self) -> list[tuple[slice, slice, Problem]]:
        """Rows, keys, and the dense problem of each sequence."""
        found = []
        ends_q, ends_k = self.cu_q.tolist(), self.cu_k.tolist()
        for i in range(len(self.lengths[0])):
            rows, keys = slice(ends_q[i], ends_q[i + 1]), slice(ends_k[i], ends_k[i + 1])
            p = self.dense
            lam = p.lam[:, rows] if isinstance(p.lam, Tensor) and p.lam.dim() == 3 else p.lam
            part = p.but(q=p.q[:, rows], k=p.k[:, keys], v=p.v[:, keys], lam=lam)
            found.append((rows, keys, part.but(dout=p.dout[:, rows])))
        return found


def _cumulative(lengths: list[int], impl: Impl) -> Tensor:
    ends = torch.tensor([0, *lengths]).cumsum(0)
    return ends.to(impl.device, torch.int32)


@DTYPE
@PACKS
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_each_sequence_obeys_the_law(
    impl: Impl, dtype: torch.dtype, pack: str, causal: bool
) -> None:
    packed = Packed(Case(dtype=dtype, causal=causal, lam="token", norm="affine"), pack, impl)
    out, lse = packed.run(impl, return_lse=True)
    assert out.shape == packed.dense.dout.shape[1:] and lse.shape == (2, 2, out.shape[0])

    for rows, _, problem in packed.sequences():
        check_answer(out[None, rows], lse[:, None, :, rows], problem)


@DTYPE
@PACKS
@pytest.mark.parametrize("lam", ["float", "head", "token"])
def test_equals_the_dense_function(impl: Impl, dtype: torch.dtype, pack: str, lam: str) -> None:
    """The same kernel on the same rows: any difference is a summation order, never a value."""
    case = Case(dtype=dtype, causal=True, window=(20, -1), lam=lam, heads=4, heads_k=2)
    packed = Packed(case, pack, impl)
    out, lse = packed.run(impl, return_lse=True)
    ulp = torch.finfo(dtype).eps
    for rows, _, p in packed.sequences():
        expected = impl.func(flat(p.q), flat(p.k), p.v, p.lam, **p.options(), return_lse=True)
        torch.testing.assert_close(out[rows], expected[0][0], rtol=ulp, atol=4 * ulp)
        torch.testing.assert_close(lse[..., rows], expected[1][:, 0], rtol=1e-6, atol=1e-6)


@DTYPE
@PACKS
def test_gradients_equal_the_dense_functions(impl: Impl, dtype: torch.dtype, pack: str) -> None:
    case = Case(dtype=dtype, causal=True, lam="token", norm="affine", heads=2, heads_k=1)
    packed = Packed(case, pack, impl)
    p = packed.dense
    leaves = [x.clone().requires_grad_() for x in (flat(p.q[0]), flat(p.k[0]), p.v[0], p.lam[0])]  # type: ignore[index]
    weight = p.norm_weight.clone().requires_grad_()  # type: ignore[union-attr]
    packed.call(impl, *leaves, norm_weight=weight).backward(p.dout[0])
    expected = [torch.zeros_like(leaf) for leaf in leaves]
    for rows, keys, part in packed.sequences():
        tensors = (flat(part.q), flat(part.k), part.v, part.lam)
        inner = [x.clone().requires_grad_() for x in tensors]  # type: ignore[union-attr]
        impl.func(*inner, **part.options()).backward(part.dout)
        for total, leaf, index in zip(expected, inner, (rows, keys, keys, rows), strict=True):
            assert leaf.grad is not None
            total[index] = leaf.grad[0]
    for leaf, total in zip(leaves, expected, strict=True):
        rtol = 4 * torch.finfo(leaf.dtype).eps
        torch.testing.assert_close(leaf.grad, total, rtol=rtol, atol=8 * rtol)
    assert weight.grad is not None and bool(weight.grad.isfinite().all())


@DTYPE
@pytest.mark.parametrize("pack", ["even", "zeros", "no_keys", "longer_k"])
def test_poison_in_other_sequences_stays_there(impl: Impl, dtype: torch.dtype, pack: str) -> None:
    """One sequence all NaN: every other is bitwise what it was, output, LSE and gradients."""
    packed = Packed(Case(dtype=dtype, lam="token"), pack, impl)

    def results(p: Problem) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (flat(p.q[0]), flat(p.k[0]), p.v[0])]
        out, lse = packed.call(impl, *leaves, p.lam[0], return_lse=True)  # type: ignore[index]
        grads = torch.autograd.grad(out, leaves, p.dout[0])
        return [out.detach(), lse.detach().permute(2, 0, 1), *grads]

    clean = results(packed.dense)
    for poisoned, (rows, keys, _) in enumerate(packed.sequences()):
        q, k, v = (x.clone() for x in (packed.dense.q, packed.dense.k, packed.dense.v))
        q[:, rows] = k[:, keys] = v[:, keys] = torch.nan
        dirty = results(packed.dense.but(q=q, k=k, v=v))
        for other, (rows2, keys2, _) in enumerate(packed.sequences()):
            if other != poisoned:
                places = (rows2, rows2, rows2, keys2, keys2)[: len(clean)]
                for a, b, index in zip(clean, dirty, places, strict=True):
                    assert torch.equal(a[index], b[index])


@DTYPE
def test_storage_around_the_tokens_is_not_read(impl: Impl, dtype: torch.dtype) -> None:
    """q, k and v are slices of a larger buffer whose other rows and channels are NaN."""
    packed = Packed(Case(dtype=dtype, lam="token"), "even", impl)
    p = packed.dense

    def embedded(x: Tensor) -> Tensor:
        rows, *rest = x.shape
        buffer = torch.full((rows + 40, *rest[:-1], rest[-1] + 8), torch.nan).to(x)
        inner = buffer[20 : 20 + rows, ..., 4:-4]
        inner.copy_(x)
        return inner

    plain = packed.run(impl, return_lse=True)
    tensors = [embedded(x) for x in (flat(p.q[0]), flat(p.k[0]), p.v[0])]
    got = packed.call(impl, *tensors, packed.lam(), return_lse=True)
    assert torch.equal(got[0], plain[0]) and torch.equal(got[1], plain[1])


@DTYPE
def test_five_d_heads_and_shared_keys(impl: Impl, dtype: torch.dtype) -> None:
    """q (total_q, nheads, 2, d) as a component-major view, and V2 keys."""
    packed = Packed(Case(dtype=dtype, shared_k=True, dv=32, heads=4, heads_k=2), "longer_k", impl)
    p = packed.dense
    view = p.q[0].transpose(1, 2).contiguous().transpose(1, 2)
    plain = packed.run(impl)
    assert torch.equal(packed.call(impl, view, p.k[0], p.v[0], packed.lam()), plain)


@DTYPE
def test_max_seqlen_may_be_generous(impl: Impl, dtype: torch.dtype) -> None:
    packed = Packed(Case(dtype=dtype), "longer_k", impl)
    p = packed.dense
    args = (flat(p.q[0]), flat(p.k[0]), p.v[0], packed.lam(), packed.cu_q, packed.cu_k)
    tight, loose = impl.varlen(*args, 64, 129), impl.varlen(*args, 1000, 2**31 - 1)
    assert torch.equal(tight, loose)
