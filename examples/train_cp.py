"""Train the demo's model on sequences that several processes share: context parallelism × FSDP2.

    torchrun --nproc-per-node 4 examples/train_cp.py --context 2

takes under a minute on two CPU cores. Of 4 processes, 2 share each sequence and 2 share the batch;
all 4 share the parameters.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

import torch
import torch.distributed as dist
from diff_lm import DiffLM
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from train_lm import mixed_precision, sample, standard_library

from diffattn_cuda.distributed import attention, shard
from diffattn_cuda.nn import MultiheadDiffAttn
from diffattn_cuda.reference import apply_rotary

RelPos = tuple[Tensor, Tensor]


def attend(
    attn: MultiheadDiffAttn, context: DeviceMesh, mode: str, x: Tensor, rel_pos: RelPos, _: None
) -> Tensor:
    """The module's forward, of this rank's tokens to those of all ranks of `context`.

    rel_pos: the rows of this rank's positions.
    """
    q = attn.q_proj(x).unflatten(-1, (attn.num_heads, 2, attn.head_dim))
    k = attn.k_proj(x).unflatten(-1, (attn.num_kv_heads, 2, attn.head_dim))
    v = attn.v_proj(x).unflatten(-1, (attn.num_kv_heads, attn.value_dim))
    q, k = (apply_rotary(heads, *rel_pos) for heads in (q, k))
    out = attention(
        q, k, v, attn.lambda_full(), context, mode, causal=True, norm_weight=attn.subln.weight,
        norm_eps=attn.subln.eps, out_scale=1 - attn.lambda_init,
    )  # fmt: skip
    return attn.out_proj(out.flatten(2))


def parallelize(model: DiffLM, context: DeviceMesh, every: DeviceMesh, mode: str) -> DiffLM:
    """Sequences over the ranks of `context`, parameters over all ranks.

    FSDP takes the mean of all ranks' gradients. Each rank's loss is the mean over as many tokens,
    so that is the gradient of the mean over all tokens.
    """
    model.cos, model.sin = (shard(table, context, 0, mode) for table in (model.cos, model.sin))
    for attn in model.attention_layers():
        attn.forward = partial(attend, attn, context, mode)  # type: ignore[method-assign]
    for block in model.blocks:
        fully_shard(block, mesh=every)
    fully_shard(model, mesh=every)
    return model


def loss_of(model: DiffLM, tokens: Tensor, context: DeviceMesh, mode: str) -> Tensor:
    """Of this rank's part of (batch, seqlen + 1) tokens, which every rank of `context` has."""
    inputs, targets = (shard(x, context, 1, mode) for x in (tokens[:, :-1], tokens[:, 1:]))
    return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--context", type=int, default=2, help="ranks that share a sequence")
    parser.add_argument("--mode", default="allgather", choices=["allgather", "ulysses", "ring"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2, help="sequences of each such group")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--lr", type=float, default=4e-3)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    ranks = dist.get_world_size()
    grid = init_device_mesh(
        device, (ranks // args.context, args.context), mesh_dim_names=("data", "context")
    )
    context, every = grid["context"], init_device_mesh(device, (ranks,))

    torch.manual_seed(0)  # the same parameters on every rank
    model = DiffLM(128, depth=2, heads=4, kv_heads=2, max_seqlen=args.seqlen).to(device)
    parallelize(model, context, every, args.mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
    text = standard_library(limit=20)
    torch.manual_seed(1 + grid["data"].get_local_rank())  # the same tokens on ranks of a context
    for step in range(args.steps):
        tokens = sample(text, args.batch, args.seqlen, device)
        with mixed_precision(device):
            loss = loss_of(model, tokens, context, args.mode)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach() / ranks)
        if dist.get_rank() == 0 and step in (0, args.steps - 1):
            print(f"step {step}: loss {mean.item():.3f} nats a byte, {args.mode}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
