"""Context parallelism: on 2 and 4 ranks outputs and gradients are those of one process."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.case import Case, short
from support.checks import check_answer, forward_verdict, gradient_verdicts
from support.data import Problem, make_problem
from support.law import enforce
from support.ranks import GONE, Ranks, mesh_of
from support.refusal import refuses
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffattn_cuda import combine_components, distributed
from diffattn_cuda.distributed import collectives, layout

MODES = list(distributed.MODES)
EVERY = [
    Case(sq=48, sk=48, heads=8, heads_k=4, lam="token", norm="affine", causal=True, lse=True),
    Case(sq=32, sk=32, heads=4, heads_k=4, d=16, dv=16, shared_k=True, lam="head", causal=True),
    Case(sq=24, sk=40, heads=4, heads_k=4, lam="scalar", norm="plain", out_scale=0.2, batch=1),
    Case(sq=32, sk=32, heads=4, heads_k=4, lam="narrow", scale=0.1, regime="sharp", causal=True),
    Case(sq=32, sk=32, heads=4, heads_k=4, softcap=1.5, causal=True),
]
NOT_RING = [
    Case(sq=64, sk=64, heads=8, heads_k=4, lam="head", causal=True, window=(9, 0), sink=3,
         streaming=(True, False, True, False), lse=True),
    Case(sq=48, sk=48, heads=4, heads_k=4, lam="token", causal=True, window=(20, 0)),
    Case(sq=32, sk=56, heads=4, heads_k=4, lam="float", window=(9, 13), batch=1),
    Case(sq=40, sk=40, heads=4, heads_k=4, window=(7, -1)),
    Case(sq=56, sk=24, heads=4, heads_k=4, causal=True, lam="scalar"),  # early rows see no key
]  # fmt: skip
NOT_ULYSSES = [Case(sq=32, sk=32, heads=3, heads_k=1, lam="token", causal=True)]  # one KV head
CALLS = (
    [(mode, case) for mode in MODES for case in EVERY]
    + [(mode, case) for mode in ("allgather", "ulysses") for case in NOT_RING]
    + [(mode, case) for mode in ("allgather", "ring") for case in NOT_ULYSSES]
)


def sharded(p: Problem, mode: str, size: int, dim: int = 1) -> Problem:
    """In a rank: the problem of its own tokens."""
    mesh = mesh_of(size)

    def own(x: Any, dim: int = dim) -> Any:
        return distributed.shard(x, mesh, dim, mode).detach()

    per_token = isinstance(p.lam, Tensor) and p.lam.dim() == 3
    return p.but(
        q=own(p.q), k=own(p.k), v=own(p.v), dout=own(p.dout),
        lam=own(p.lam) if per_token else p.lam, dlse=None if p.dlse is None else own(p.dlse, 3),
    )  # fmt: skip


def joined(x: Tensor, like: Tensor, mode: str, size: int) -> Tensor:
    """A gradient of all tokens; of what is the same on each rank, the sum of the ranks' parts."""
    if x.shape != like.shape:
        return distributed.unshard(x, mesh_of(size), 1, mode)
    dist.all_reduce(x, group=mesh_of(size).get_group())
    return x


def attended(case: Case, mode: str, size: int) -> dict[str, Tensor]:
    """In a rank: the output, LSE and gradients of one call, joined."""
    p, mesh = make_problem(case), mesh_of(size)
    mine = sharded(p, mode, size)
    named = {name: x.requires_grad_() for name in ("q", "k", "v", "lam", "norm_weight")
             if isinstance(x := getattr(mine, name), Tensor)}  # fmt: skip
    out, lse = distributed.attention(
        mine.q, mine.k, mine.v, mine.lam, mesh, mode, **mine.options(), return_lse=True
    )
    results = ((out, lse), (mine.dout, mine.dlse)) if case.lse else ((out,), (mine.dout,))
    gradients = torch.autograd.grad(results[0], list(named.values()), results[1])
    found = {name: joined(x, getattr(p, name), mode, size)
             for name, x in zip(named, gradients, strict=True)}  # fmt: skip
    found["out"] = distributed.unshard(out.detach(), mesh, 1, mode)
    found["lse"] = distributed.unshard(lse.detach(), mesh, 3, mode)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("mode", "base"), CALLS, ids=str)
def test_as_one_process(ranks: Ranks, mode: str, base: Case, size: int, dtype: torch.dtype) -> None:
    case = base.but(dtype=dtype)
    p, got = make_problem(case), ranks.run(attended, case, mode, size)[0]
    check_answer(got.pop("out"), got.pop("lse"), p)
    for verdict in gradient_verdicts(got, p):
        enforce(verdict)


STARTS = [0, 13, 13, 38, 48]


def attended_packed(case: Case, mode: str, size: int) -> dict[str, Tensor]:
    p, mesh = make_problem(case), mesh_of(size)
    cu = torch.tensor(STARTS, dtype=torch.int32)
    mine = sharded(p, mode, size)
    leaves = [x[0].requires_grad_() for x in (mine.q, mine.k, mine.v, mine.lam)]  # type: ignore[index]
    out, lse = distributed.attention(
        *leaves, mesh, mode, **mine.options(), return_lse=True, cu_seqlens=cu, max_seqlen=25
    )
    gradients = torch.autograd.grad(out, leaves, mine.dout[0])
    found = {name: distributed.unshard(x, mesh, 0, mode)
             for name, x in zip(("q", "k", "v", "lam"), gradients, strict=True)}  # fmt: skip
    found["lse"] = distributed.unshard(lse.detach(), mesh, 2, mode)
    return found | {"out": distributed.unshard(out.detach(), mesh, 0, mode)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
@pytest.mark.parametrize("mode", ["allgather", "ulysses"])
@pytest.mark.parametrize(
    "mask", [{"causal": True}, {}, {"causal": True, "window": (5, 0), "sink": 2}], ids=str
)
def test_packed_sequences(
    ranks: Ranks, mask: dict[str, Any], mode: str, dtype: torch.dtype
) -> None:
    """Those of STARTS begin and end inside chunks; one has no tokens, one lies in three chunks."""
    case = Case(batch=1, sq=48, sk=48, heads=4, heads_k=4, lam="token", dtype=dtype, **mask)
    p, got = make_problem(case), ranks.run(attended_packed, case, mode, 4)[0]
    assert isinstance(p.lam, Tensor)
    for first, last in zip(STARTS, STARTS[1:], strict=False):
        rows = slice(first, last)
        of_one = {name: getattr(p, name)[:, rows] for name in ("q", "k", "v", "lam", "dout")}
        one = p.but(**of_one)
        if first < last:
            check_answer(got["out"][None, rows], got["lse"][:, None, :, rows], one)
            gradients = {name: got[name][None, rows] for name in ("q", "k", "v", "lam")}
            for verdict in gradient_verdicts(gradients, one):
                enforce(verdict)


def attended_apart(case: Case, mode: str, size: int) -> dict[str, Tensor]:
    """In a rank: the output made of components, and its gradients."""
    p, mesh = make_problem(case), mesh_of(size)
    mine = sharded(p, mode, size)
    leaves = [x.requires_grad_() for x in (mine.q, mine.k, mine.v)]
    o, lse = distributed.attention(
        *leaves, None, mesh, mode, causal=p.causal, return_components=True
    )
    out = combine_components(o, p.lam)
    gradients = torch.autograd.grad((out, lse), leaves, (mine.dout, mine.dlse.movedim(0, -2)))  # type: ignore[union-attr]
    found = {name: distributed.unshard(x, mesh, 1, mode)
             for name, x in zip("qkv", gradients, strict=True)}  # fmt: skip
    found["lse"] = distributed.unshard(lse.detach(), mesh, 3, mode)
    return found | {"out": distributed.unshard(out.detach(), mesh, 1, mode)}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_components(ranks: Ranks, mode: str, causal: bool) -> None:
    case = Case(sq=32, sk=32, heads=8, heads_k=4, lam="float", causal=causal, lse=True)
    p, got = make_problem(case), ranks.run(attended_apart, case, mode, 4)[0]
    lse = got.pop("lse").movedim(-2, 0)
    check_answer(got["out"], lse, p)
    enforce(forward_verdict(got.pop("out"), p))
    for verdict in gradient_verdicts(got, p):
        enforce(verdict)


class _Recorded(TorchDispatchMode):
    """Our ops with their tensors' shapes, the collectives with their message's dtype and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func.name().split("::")
        if namespace == "diffattn":
            self.calls.append((name, *(x.shape for x in args if isinstance(x, Tensor))))
        elif namespace == "_c10d_functional":
            self.calls.append((name, args[0].dtype, args[0].nbytes))
        return func(*args, **kwargs or {})


def recorded(case: Case, mode: str, size: int, backward: bool) -> list[tuple[Any, ...]]:
    mine = sharded(make_problem(case), mode, size)
    leaves = [x.requires_grad_() for x in (mine.q, mine.k, mine.v)]
    calls = _Recorded()
    if not backward:
        with calls:
            distributed.attention(*leaves, 0.8, mesh_of(size), mode, causal=True)
        return calls.calls
    out = distributed.attention(*leaves, 0.8, mesh_of(size), mode, causal=True)
    with calls, torch.autograd.set_multithreading_enabled(False):
        out.backward(mine.dout)
    return calls.calls


RING = Case(sq=32, sk=32, heads_k=2, batch=1)


def test_the_next_hop_is_posted_before_this_hops_kernel(ranks: Ranks) -> None:
    post, compute, wait = "all_to_all_single", "components", "wait_tensor"
    for calls in ranks.run(recorded, RING, "ring", 4, False):
        names = [name for name, *_ in calls][2:]  # without the gather that compares shapes
        assert names == [post, compute, wait] * 3 + [compute]


def test_a_hops_gradients_are_waited_for_after_the_kernel(ranks: Ranks) -> None:
    """They travel one kernel behind the keys: posted after this one, needed after the next."""
    post, compute, wait = "all_to_all_single", "bwd_partial", "wait_tensor"
    for calls in ranks.run(recorded, RING, "ring", 4, True):
        names = [name for name, *_ in calls]
        first, middle, last = (
            [post, compute, post, wait],
            [post, compute, wait, post, wait],
            [compute, wait, post, wait],
        )
        assert names == first + 2 * middle + last


def test_gradients_of_keys_are_added_up_in_fp32(ranks: Ranks) -> None:
    """Each rank's part of a gathered key's gradient is rounded; 512 roundings more would show."""
    for calls in ranks.run(recorded, RING.but(dtype=torch.bfloat16), "allgather", 4, True):
        summed = [call[1] for call in calls if call[0] == "reduce_scatter_tensor"]
        assert summed == [torch.float32] * 2


def test_bytes_that_a_rank_sends(ranks: Ranks) -> None:
    """Those of docs/distributed.md; a message of a gather goes to each other rank."""
    case = RING.but(dtype=torch.bfloat16, heads=4, heads_k=4)
    tokens, others = 32 // 4, 3
    keys, queries, out = 2 * 4 * (2 * 32 + 64), 2 * 4 * 2 * 32, 2 * 4 * 64  # bytes per token
    each_way = tokens * (queries + keys + out) * others // 4
    wanted = {
        "allgather": (others * tokens * keys, 2 * others * tokens * keys),
        "ulysses": (each_way, each_way),
        "ring": (others * tokens * keys, (others + 2 * 4) * tokens * keys),
    }
    for mode, both in wanted.items():
        for backward, wants in enumerate(both):
            for calls in ranks.run(recorded, case, mode, 4, bool(backward)):
                # How often a message leaves; of those that are cut for all ranks a part stays.
                sent = {"all_gather_into_tensor": others, "reduce_scatter_tensor": others / 4,
                        "all_to_all_single": others / 4 if mode == "ulysses" else 1}  # fmt: skip
                messages = [c for c in calls if c[0] in sent and c[1] != torch.int64]
                assert sum(sent[name] * size for name, _, size in messages) == wants, (mode, calls)


@pytest.mark.parametrize("mode", ["allgather", "ring"])
def test_each_rank_has_as_much_to_do(ranks: Ranks, mode: str) -> None:
    """Visible pairs of the calls that a rank makes, added up: they are those of the whole."""
    pairs = []
    for calls in ranks.run(recorded, RING.but(sq=128, sk=128), mode, 4, False):
        shapes = [shapes for name, *shapes in calls if name in ("fwd", "components")]
        pairs.append(sum(visible(mode, q[1], k[1]) for q, k, *_ in shapes))
    assert sum(pairs) == 128 * 129 // 2
    assert max(pairs) <= 1.05 * sum(pairs) / len(pairs)


def visible(mode: str, rows: int, keys: int) -> int:
    """A hop of the ring masks nothing, except the first: rows and keys are equal there alone."""
    masked = mode == "allgather" or rows == keys
    return rows * keys - (rows * (rows - 1) // 2 if masked else 0)


@pytest.mark.parametrize("size", [2, 8, 64, 512])
def test_balance(size: int) -> None:
    """For causal attention by the layout alone, and what plain shards would do."""
    positions = torch.arange(size * 32)
    for balanced, most in ((True, 1.0), (False, 2 - 1 / size)):
        of_ranks = [
            layout.own(positions, collectives.Ranks("", size, rank), 0, balanced)
            for rank in range(size)
        ]
        assert torch.equal(torch.stack(of_ranks), layout.by_rank(positions, size, 0, balanced))
        assert torch.equal(layout.in_order(torch.stack(of_ranks), 0, balanced), positions)
        pairs = torch.stack([(own + 1).sum() for own in of_ranks]).double()
        assert float(pairs.max() / pairs.mean()) == pytest.approx(most, abs=0.05)


def gradients_of_sharding(mode: str) -> tuple[Tensor, Tensor]:
    mesh, x = mesh_of(4), torch.arange(48.0).view(2, 24).requires_grad_()
    own = distributed.shard(x, mesh, -1, mode)
    weight = torch.arange(24.0) ** 2
    whole = distributed.unshard(own * own, mesh, -1, mode)
    (whole * weight).sum().backward()
    assert x.grad is not None
    return whole.detach(), x.grad


@pytest.mark.parametrize("mode", MODES)
def test_sharding_is_differentiable(ranks: Ranks, mode: str) -> None:
    x = torch.arange(48.0).view(2, 24)
    for whole, gradient in ranks.run(gradients_of_sharding, mode):
        assert torch.equal(whole, x * x)
        assert torch.equal(gradient, 2 * x * torch.arange(24.0) ** 2)


def refusals() -> None:
    """In a rank."""
    mesh, two = mesh_of(4), mesh_of(2)
    q, v = torch.randn(1, 8, 4, 2, 8), torch.randn(1, 8, 4, 16)
    cu = torch.tensor([0, 32], dtype=torch.int32)

    def attend(mode: str = "allgather", q: Tensor = q, k: Tensor = q, v: Tensor = v,
               mesh: Any = mesh, **options: Any) -> None:  # fmt: skip
        distributed.attention(q, k, v, 0.8, mesh, mode, **options)

    with refuses("x has 36 tokens", "a multiple of 8", "pad"):
        distributed.shard(torch.zeros(1, 36), mesh, 1)
    with refuses("x has 34 tokens", "a multiple of 4"):
        distributed.shard(torch.zeros(1, 34), mesh, 1, "ulysses")
    with refuses("x has 7 tokens", "an even number"):
        distributed.unshard(torch.zeros(1, 7), mesh, 1)
    with refuses("dim is 2"):
        distributed.shard(torch.zeros(1, 8), mesh, 2)
    with refuses("mode is 'zigzag'", "'ulysses'"):
        distributed.shard(torch.zeros(1, 8), mesh, 1, "zigzag")
    with refuses("mode is None"):
        attend(None)  # type: ignore[arg-type]
    with refuses("mesh is ProcessGroup"):
        attend(mesh=dist.group.WORLD)
    with refuses("mesh has 2 dimensions"):
        attend(mesh=dist.init_device_mesh("cpu", (2, 2)))
    with refuses("q has 7 tokens", "an even number"):
        attend(q=q[:, :7])
    with refuses("v has shape"):
        attend(v=v[:, :6])
    with refuses("lam has shape"):
        distributed.attention(q, q, v, torch.rand(3), mesh)
    with refuses("sink_size was given with causal=False"):
        attend("ulysses", sink_size=3)
    with refuses("return_lse and return_components"):
        attend(return_lse=True, return_components=True)
    with refuses("v has 2 heads", "'ulysses'", "4, divides"):
        attend("ulysses", k=q[:, :, :2], v=v[:, :, :2])
    attend("ulysses", k=q[:, :, :2], v=v[:, :, :2], mesh=two)
    for window in ({"causal": True, "window_size": (5, 0)}, {"window_size": (-1, 3)}):
        with refuses("window_size", "mode='ring'"):
            attend("ring", **window)
    with refuses("cu_seqlens", "mode='ring'"):
        attend("ring", q=q[0], k=q[0], v=v[0], cu_seqlens=cu, max_seqlen=32)
    with refuses("window_size", "cu_seqlens", "causal=False"):
        attend(q=q[0], k=q[0], v=v[0], cu_seqlens=cu, max_seqlen=32, window_size=(2, 2))
    with refuses("k has 6 tokens", "mode='ring' and causal"):
        attend("ring", k=q[:, :6], v=v[:, :6], causal=True)
    with refuses("k has 6 tokens", "cu_seqlens"):
        attend(q=q[0], k=q[0, :6], v=v[0, :6], cu_seqlens=cu, max_seqlen=32)
    own = 4 if dist.get_rank() == 2 else 8
    for mode in MODES:
        with refuses("q has shape (1, 8, 4, 2, 8) on rank 0 of the mesh and (1, 4, 4, 2, 8) on"):
            attend(mode, q=q[:, :own], k=q[:, :own], v=v[:, :own])


def test_wrong_arguments_are_refused(ranks: Ranks) -> None:
    """On each rank alike, uneven lengths included, so that none waits for another."""
    ranks.run(refusals)


def with_a_dead_neighbour() -> tuple[str, float]:
    """In a rank: ranks 1 and 3 go; 0 was in an all-gather with one, 2 in a ring with the other."""
    mesh, rank = mesh_of(2), dist.get_rank()
    mode = ("allgather", "ring")[rank // 2]
    q, v = torch.randn(1, 8, 2, 2, 8), torch.randn(1, 8, 2, 16)
    distributed.attention(q, q, v, 0.8, mesh, mode)
    if rank % 2:
        os._exit(1)
    start = time.perf_counter()
    try:
        distributed.attention(q, q, v, 0.8, mesh, mode)
    except RuntimeError as error:
        return str(error), time.perf_counter() - start
    return "no error", 0.0


def test_a_rank_that_dies_is_an_error_of_the_others() -> None:
    pool = Ranks(4, seconds=60)
    try:
        answers = pool.answers(with_a_dead_neighbour)
    finally:
        pool.close()
    assert answers[1] == answers[3] == GONE
    for message, seconds in (answers[0], answers[2]):
        assert "gloo" in message.lower() or "connection" in message.lower()
        assert seconds < pool.seconds + 5
