"""With torch's own tools: selective checkpointing saves the op, the flop counter knows it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.cache import make_cache
from support.case import Case
from support.data import flat, make_problem
from support.impls import Impl
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from diffattn_cuda import diff_flash_attn_backward, flops, ops
from diffattn_cuda.nn import MultiheadDiffAttn

CASE = Case(batch=2, sq=24, sk=40, heads=4, heads_k=2, d=32, causal=True)
PAIRS = 2 * 24 * 40 * 4  # of queries and keys, times heads; a mask takes none off


@pytest.mark.parametrize(
    ("base", "forward", "backward"),
    [(CASE.but(dv=64), 12 * 32, 20 * 32), (CASE.but(dv=32, shared_k=True), 8 * 32, 16 * 32)],
    ids=["V1", "V2"],
)
def test_flops(impl: Impl, base: Case, forward: int, backward: int) -> None:
    """Dense and packed, with components and without; decoding counts the cache's slots."""
    flops.register()
    flops.register()
    case = base.but(dtype=impl.dtypes[0])
    p = make_problem(case, impl.device)
    leaves = [flat(p.q).requires_grad_(), flat(p.k).requires_grad_(), p.v.requires_grad_()]
    starts = [torch.tensor([0, n, 2 * n], dtype=torch.int32, device=impl.device) for n in (24, 40)]

    def count(run: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def trained(apart: bool, packed: bool) -> None:
        tensors, function = leaves, impl.func
        if packed:
            tensors = [x.flatten(0, 1) for x in leaves]
            function = partial(impl.varlen, cu_seqlens_q=starts[0], cu_seqlens_k=starts[1],
                               max_seqlen_q=24, max_seqlen_k=40)  # fmt: skip
        out = function(*tensors, lam=0.5, return_components=apart)
        (out[0] if apart else out).sum().backward()

    for packed in (False, True):
        assert count(partial(trained, False, packed)) == PAIRS * (forward + backward)
        assert count(partial(trained, True, packed)) == PAIRS * (forward + 2 * backward)
    o, lse = impl.func(*leaves, None, return_components=True)
    part = partial(diff_flash_attn_backward, p.dout, *leaves, 0.5, o, lse)
    assert count(part) == PAIRS * backward

    for kind, slots in (("plain", None), ("paged16", 16)):
        cache = make_cache(case.but(sq=1), impl, kind, [20, 9], [0, 0])
        q = flat(cache.problem.q)
        capacity = cache.k.shape[1]
        if slots:
            capacity *= cache.arguments["block_table"].shape[1]
        for apart in (False, True):
            decode = partial(impl.kvcache, q, cache.k, cache.v, 0.5, **cache.arguments)
            assert count(partial(decode, return_components=apart)) == 2 * 4 * capacity * forward


class _Counted(TorchDispatchMode):
    """How often the forward op runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.runs += func is ops.kernels.fwd.default
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("saved", "runs"), [(True, 1), (False, 2)])
def test_selective_checkpointing(saved: bool, runs: int) -> None:
    """The op's results are kept, what is cheap around it is computed again."""
    attn = MultiheadDiffAttn(64, 1, 2)
    x = torch.randn(1, 20, 64)
    context = partial(create_selective_checkpoint_contexts, [torch.ops.diffattn.fwd.default])
    options: dict[str, Any] = {"context_fn": context} if saved else {}

    def gradients(run: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x).square().sum(), [*attn.parameters()])

    counter = _Counted()
    with counter, torch.autograd.set_multithreading_enabled(False):
        got = gradients(lambda x: checkpoint(attn, x, use_reentrant=False, **options))
    assert counter.runs == runs
    for mine, plain in zip(got, gradients(attn), strict=True):
        torch.testing.assert_close(mine, plain)
