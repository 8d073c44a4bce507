"""Context and tensor parallelism of whole models and layers: a step equals one process's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import Ranks, mesh_of
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from diffattn_cuda import diff_flash_attn_func, distributed
from diffattn_cuda.nn import MultiheadDiffAttn, MultiheadDiffAttnV2

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SEQLEN = 32


def examples_on_the_path() -> None:
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))


def small_model() -> nn.Module:
    examples_on_the_path()
    from diff_lm import DiffLM

    torch.manual_seed(0)
    return DiffLM(64, depth=2, heads=2, kv_heads=2, max_seqlen=SEQLEN)


def tokens_of(batch: int) -> Tensor:
    return torch.randint(256, (batch, SEQLEN + 1), generator=torch.Generator().manual_seed(1))


def stepped(mode: str) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """In a rank of 2 × 2: the loss, all gradients, and all parameters after a step."""
    examples_on_the_path()
    import train_cp

    context = mesh_of(2)
    every = dist.init_device_mesh("cpu", (4,))
    model: Any = train_cp.parallelize(small_model(), context, every, mode)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    mine = tokens_of(4).chunk(2)[dist.get_rank() // 2]
    loss = train_cp.loss_of(model, mine, context, mode)
    loss.backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    optimizer.step()
    parameters = {name: p.detach().full_tensor() for name, p in model.named_parameters()}
    dist.all_reduce(loss := loss.detach())
    return loss.item() / 4, gradients, parameters


@pytest.mark.parametrize("mode", distributed.MODES)
def test_a_training_step_with_fsdp(ranks: Ranks, mode: str) -> None:
    model: Any = small_model()
    loss = model.loss(tokens_of(4))
    loss.backward()
    answers = ranks.run(stepped, mode)
    for found, gradients, parameters in answers:
        assert found == pytest.approx(loss.item(), rel=1e-5)
        for name, p in model.named_parameters():
            assert distance(gradients[name], p.grad) < 1e-4, name
            assert distance(parameters[name], p.detach() - p.grad) < 1e-5, name


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).detach().norm() / wanted.detach().norm())


def test_the_example_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               str(EXAMPLES / "train_cp.py"), "--steps", "10", "--seqlen", "128"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path,
                         timeout=300)  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    first, last = map(float, re.findall(r"step \d+: loss (\S+) nats", run.stdout))
    assert last < first - 0.5


def compiled(mode: str) -> list[tuple[Tensor, Tensor]]:
    """In a rank: output and gradients, each plain and of one graph."""
    mesh = mesh_of(4)
    leaves = [distributed.shard(x, mesh, 1, mode).requires_grad_() for x in inputs()[:3]]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return distributed.attention(q, k, v, 0.8, mesh, mode, causal=True, norm_eps=1e-5)

    results = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        out = function(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("mode", distributed.MODES)
def test_one_graph_for_the_compiler(ranks: Ranks, mode: str) -> None:
    for answers in ranks.run(compiled, mode):
        for plain, graphed in answers:
            torch.testing.assert_close(graphed, plain)


def layer(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    attn: Any = (
        MultiheadDiffAttn(64, 1, 4, 4) if kind is MultiheadDiffAttn
        else MultiheadDiffAttnV2(64, 4, 4)
    )  # fmt: skip
    return attn, torch.randn(2, 20, 64)


def tensor_parallel(kind: type[nn.Module]) -> tuple[Tensor, dict[str, Tensor]]:
    """In a rank: the recipe of docs/distributed.md."""
    mesh = mesh_of(4)
    attn, x = layer(kind)
    plan: dict[str, Any] = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    if hasattr(attn, "lambda_proj"):
        plan["lambda_proj"] = ColwiseParallel()
    parallelize_module(attn, mesh, plan | {"out_proj": RowwiseParallel()})
    attn.num_heads //= mesh.size()  # type: ignore[operator]
    attn.num_kv_heads //= mesh.size()  # type: ignore[operator]
    out = attn(x)
    out.square().sum().backward()
    gradients = {}
    for name, p in attn.named_parameters():
        if isinstance(p.grad, DTensor):
            gradients[name] = p.grad.full_tensor()
        else:  # λ's vectors and the norm weight: each rank has the part of its heads
            assert p.grad is not None
            dist.all_reduce(p.grad, group=mesh.get_group())
            gradients[name] = p.grad
    return out.detach(), gradients


@pytest.mark.parametrize("kind", [MultiheadDiffAttn, MultiheadDiffAttnV2])
def test_tensor_parallelism_by_groups(ranks: Ranks, kind: type[nn.Module]) -> None:
    attn, x = layer(kind)
    out = attn(x)
    out.square().sum().backward()
    got, gradients = ranks.run(tensor_parallel, kind)[3]
    assert distance(got, out) < 1e-5
    for name, p in attn.named_parameters():
        assert p.grad is not None and distance(gradients[name], p.grad) < 1e-4, name


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 16, 4, 2, 16, generator=generator)
    v, dout = torch.randn(2, 1, 16, 4, 32, generator=generator)
    return q, k, v, dout


def by_local_map(dim: int) -> tuple[Tensor, list[Tensor]]:
    """In a rank: DTensors that are sharded by heads (dim 2), or by tokens (dim 1)."""
    mesh = mesh_of(4)
    here = [Shard(dim)]
    function = partial(diff_flash_attn_func, lam=0.8, causal=True)
    if dim == 1:
        function = partial(distributed.attention, lam=0.8, mesh=mesh, mode="ulysses", causal=True)
    attend = local_map(function, out_placements=here, in_placements=(here, here, here),
                       device_mesh=mesh)  # fmt: skip
    *qkv, dout = (distribute_tensor(x, mesh, here) for x in inputs())
    leaves = [x.requires_grad_() for x in qkv]
    out = attend(*leaves)
    gradients = torch.autograd.grad(out, leaves, dout)
    return out.full_tensor().detach(), [x.full_tensor() for x in gradients]


@pytest.mark.parametrize("dim", [1, 2], ids=["tokens", "heads"])
def test_dtensors_by_local_map(ranks: Ranks, dim: int) -> None:
    *qkv, dout = inputs()
    leaves = [x.requires_grad_() for x in qkv]
    out = diff_flash_attn_func(*leaves, 0.8, causal=True)
    wanted = torch.autograd.grad(out, leaves, dout)
    got, gradients = ranks.run(by_local_map, dim)[1]
    torch.testing.assert_close(got, out, rtol=1e-5, atol=1e-5)
    for x, y in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
