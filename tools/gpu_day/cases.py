"""Small problems for CUDA's tools: the core set of the sanitizers, and those that are counted.

    python tools/gpu_day/cases.py core                   # every kernel and width once, held to fp64
    python tools/gpu_day/cases.py training-d64-dv128     # the kernels of one step, to be counted

The package is imported late: the driver only lists these problems, and has no package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SEQLEN = 1024
HEADS, CACHED, PAGE, SPLITS = 4, 4096, 64, 4  # of a step of decoding, with one KV head
KERNELS = ("fwd_kernel", "prepare_kernel", "bwd_kernel", "round_dq_kernel", "decode_kernel",
           "combine_kernel")  # fmt: skip


def normal(seed: int, *shape: int) -> Tensor:
    """bf16, on the CPU."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=gen).to(torch.bfloat16)


@dataclass(frozen=True)
class Training:
    """A forward that saves and its backward: one head of DIFF V1, no mask, no norm."""

    d: int

    def __call__(self, device: str) -> None:
        from diffattn_cuda import diff_flash_attn_func

        shapes = [(1, SEQLEN, 2, self.d), (1, SEQLEN, 2, self.d), (1, SEQLEN, 1, 2 * self.d)]
        q, k, v = (normal(i, *s).to(device).requires_grad_() for i, s in enumerate(shapes))
        lam = torch.tensor(0.8).to(device).requires_grad_()
        out = diff_flash_attn_func(q, k, v, lam)
        out.backward(normal(3, *out.shape).to(device))


@dataclass(frozen=True)
class Decoding:
    """One token of one sequence over a paged cache whose keys are split."""

    d: int

    def __call__(self, device: str) -> None:
        from diffattn_cuda import diff_flash_attn_with_kvcache

        pages = CACHED // PAGE + 1
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(0))
        shapes = [
            (1, 1, 2 * HEADS, self.d), (pages, PAGE, 2, self.d), (pages, PAGE, 1, 2 * self.d),
            (1, 1, 2, self.d), (1, 1, 1, 2 * self.d),
        ]  # fmt: skip
        q, k_cache, v_cache, k, v = (normal(i, *s).to(device) for i, s in enumerate(shapes))
        diff_flash_attn_with_kvcache(
            q, k_cache, v_cache, 0.8, k, v,
            cache_seqlens=torch.tensor([CACHED], dtype=torch.int32).to(device),
            block_table=order.reshape(1, pages).to(device, torch.int32),
            num_splits=SPLITS,
        )  # fmt: skip


COUNTED: dict[str, Callable[[str], None]] = {
    f"{name}-d{d}-dv{2 * d}": kind(d)
    for name, kind in (("training", Training), ("decoding", Decoding))
    for d in (64, 128)
}


def core(device: str) -> None:
    """Every kernel and compiled width in bf16; raises where a result is wrong."""
    from diffattn_cuda.selftest.checks import OPS, WIDTHS, Check, run

    for op in OPS:
        for head_dims in WIDTHS:
            outcome = run(Check(op, "bf16", head_dims), torch.device(device))
            if outcome.failure:
                raise SystemExit(f"{outcome.check}: {outcome.failure}")
            print(f"{outcome.check} is right", flush=True)


def main(name: str, device: str = "cuda") -> None:
    case = core if name == "core" else COUNTED[name]
    case(device)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
