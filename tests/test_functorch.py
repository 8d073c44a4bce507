"""torch.func and forward-mode AD: right, or a clear error; never a derivative of zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.case import Case
from support.data import Problem, flat, make_problem
from support.impls import Impl
from support.refusal import refuses
from torch import Tensor
from torch.autograd import forward_ad

from diffattn_cuda import reference

pytestmark = pytest.mark.needs("has_ops")
Function = Callable[..., Any]


def problem(impl: Impl) -> Problem:
    case = Case(sq=9, sk=12, causal=True, norm="affine", lam="token", dtype=impl.dtypes[-1])
    return make_problem(case, impl.device)


def inputs(p: Problem) -> tuple[Tensor, ...]:
    assert isinstance(p.lam, Tensor)
    return flat(p.q), flat(p.k), p.v, p.lam.clone()


def agree(impl: Impl, got: Any, expected: Any) -> None:
    """To the accuracy of the dtype; the laws of accuracy are asked elsewhere."""
    tolerance = {torch.float64: 1e-10, torch.bfloat16: 3e-2}[impl.dtypes[-1]]
    got, expected = ((x,) if isinstance(x, Tensor) else x for x in (got, expected))
    for a, b in zip(got, expected, strict=True):
        assert a.norm() > 0  # a gradient that is lost is zero
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


def both(impl: Impl, transform: Callable[[Function], Any]) -> None:
    agree(impl, transform(impl.func), transform(reference.diff_flash_attn_func))


def test_grad(impl: Impl) -> None:
    p = problem(impl)

    def loss(function: Function) -> Function:
        return lambda *args: function(*args, **p.options()).square().sum()

    both(impl, lambda f: torch.func.grad(loss(f), argnums=(0, 1, 2, 3))(*inputs(p)))


def test_grad_equals_backward(impl: Impl) -> None:
    """Bit for bit: the same kernels with the same arguments."""
    p = problem(impl)
    leaves = [x.detach().requires_grad_() for x in inputs(p)]
    expected = torch.autograd.grad(impl.func(*leaves, **p.options()).sum(), leaves)
    got = torch.func.grad(lambda *args: impl.func(*args, **p.options()).sum(), argnums=(0, 1, 2, 3))
    for a, b in zip(got(*inputs(p)), expected, strict=True):
        assert torch.equal(a, b)


def test_vjp_of_output_and_lse(impl: Impl) -> None:
    p = problem(impl)

    def run(function: Function) -> Any:
        _, pull = torch.func.vjp(
            lambda *args: function(*args, **p.options(), return_lse=True), *inputs(p)
        )
        return pull((p.dout, torch.ones(2, *p.dout.shape[:1], 2, 9, device=impl.device,
                                        dtype=inputs(p)[3].dtype)))  # fmt: skip

    both(impl, run)


def test_grad_of_packed_sequences(impl: Impl) -> None:
    p = make_problem(Case(batch=1, sq=9, sk=9, dtype=impl.dtypes[-1]), impl.device)
    cu = torch.tensor([0, 4, 9], dtype=torch.int32, device=impl.device)
    q, k, v = (x[0] for x in (flat(p.q), flat(p.k), p.v))

    def gradient(function: Function) -> Any:
        def loss(q: Tensor) -> Tensor:
            out: Tensor = function(q, k, v, 0.5, cu, cu, 5, 5)
            return out.square().sum()

        return torch.func.grad(loss)(q)

    agree(impl, gradient(impl.varlen), gradient(reference.diff_flash_attn_varlen_func))


def test_jacrev(impl: Impl) -> None:
    """Its vmap is over the gradients of the output, one backward each."""
    p = problem(impl)
    q, k, v, lam = inputs(p)

    def jacobian(function: Function) -> Any:
        def rows(lam: Tensor) -> Tensor:
            out: Tensor = function(q, k, v, lam, **p.options())
            return out.sum((0, 2, 3))

        return torch.func.jacrev(rows)(lam)

    both(impl, jacobian)


def test_nested_transforms(impl: Impl) -> None:
    """The inner derivative is to b, the outer one to a, which both levels see."""
    p = problem(impl)
    q, k, v, lam = inputs(p)

    def nested(function: Function) -> Any:
        def outer(a: Tensor) -> Tensor:
            def inner(b: Tensor) -> tuple[Tensor, Tensor]:
                out = function(a * b * q, k, v, lam, **p.options())
                return b * 0, out.square().sum()

            loss: Tensor = torch.func.grad(inner, has_aux=True)(torch.ones_like(a))[1]
            return loss

        return torch.func.grad(outer)(torch.ones((), dtype=q.dtype, device=q.device))

    both(impl, nested)


def test_double_backward_under_torch_func(impl: Impl) -> None:
    p = problem(impl)
    q, k, v, lam = inputs(p)

    def gradient(q: Tensor) -> Tensor:
        return torch.func.grad(lambda q: impl.func(q, k, v, lam).square().sum())(q).sum()

    with refuses("double backward"):
        torch.func.grad(gradient)(q)


FORWARD = {
    "jvp": lambda f, q: torch.func.jvp(f, (q,), (q,)),
    "jacfwd": lambda f, q: torch.func.jacfwd(f)(q),
    "linearize": lambda f, q: torch.func.linearize(f, q),
    "hessian": lambda f, q: torch.func.hessian(lambda q: f(q).sum())(q),
    "jvp of grad": lambda f, q: torch.func.jvp(torch.func.grad(lambda q: f(q).sum()), (q,), (q,)),
    "grad of jvp": lambda f, q: torch.func.grad(
        lambda t: torch.func.jvp(f, (q,), (t,))[1].sum()
    )(q),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", list(FORWARD))
def test_forward_mode_under_torch_func(impl: Impl, name: str) -> None:
    p = problem(impl)
    q, k, v, lam = inputs(p)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        FORWARD[name](lambda q: impl.func(q, k, v, lam), q)


@pytest.mark.parametrize("name", ["q", "k", "v", "lam", "norm_weight"])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("recording", [False, True])
def test_dual_tensors(impl: Impl, name: str, requires_grad: bool, recording: bool) -> None:
    p = problem(impl)
    arguments = dict(zip(("q", "k", "v", "lam"), inputs(p), strict=True)) | p.options()
    primal = arguments[name].detach().clone().requires_grad_(requires_grad)
    with forward_ad.dual_level():
        impl.func(**arguments)  # within a level, but no tangent
        arguments[name] = forward_ad.make_dual(primal, torch.ones_like(primal))
        with torch.set_grad_enabled(recording):
            with pytest.raises(NotImplementedError, match="forward-mode"):
                impl.func(**arguments)


def test_dual_gradient_of_the_output(impl: Impl) -> None:
    p = problem(impl)
    q, k, v, lam = inputs(p)
    q.requires_grad_()
    out = impl.func(q, k, v, lam)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(out, q, dual)


@pytest.mark.parametrize("raw", [False, True], ids=["function", "op"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_dual_tensors_of_a_cache(impl: Impl, which: int, raw: bool) -> None:
    p = problem(impl)
    tensors = list(inputs(p)[:3])
    with forward_ad.dual_level():
        tensors[which] = forward_ad.make_dual(tensors[which], tensors[which].clone())
        with pytest.raises(NotImplementedError, match="forward-mode"):
            if raw:
                q, k = (x.unflatten(2, (-1, 2)) for x in tensors[:2])
                none = (None,) * 9
                lam = p.lam_rows(torch.promote_types(p.q.dtype, torch.float32))
                torch.ops.diffattn.decode(q, k, tensors[2], lam, *none, 0.5, -1, -1, 0, -1, True,
                                          None, 1.0, 0)  # fmt: skip
            else:
                impl.kvcache(*tensors, 0.5)


def test_decoding_under_grad(impl: Impl) -> None:
    q, k, v, _ = inputs(problem(impl))
    with refuses("no gradient", "no_grad"):
        torch.func.grad(lambda q: impl.kvcache(q, k, v, 0.5).sum())(q)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("name", ["q", "k"])
def test_tangents_of_what_torch_cannot_view(impl: Impl, name: str) -> None:
    """A view of a lazy negative is an internal assert of torch: our refusal comes first."""
    p = problem(impl)
    arguments = dict(zip("qkv", inputs(p), strict=False))
    primal = torch._neg_view(arguments.pop(name))
    ones = torch.ones_like(primal)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: impl.func(**arguments, lam=0.5, **{name: x}), (primal,), (ones,))
