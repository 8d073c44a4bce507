"""CPUs that multiply bf16: their kernels, and the same by other instructions, agree bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

NATIVE, EMULATED = "avx512bf16", "avx512bf16-emulated"
# Masks that end within a pair, an odd number of keys and rows, head dims that are no whole vector,
# V of both widths, GQA, packed and left-padded sequences.
RUN = """
import hashlib, itertools, sys
import torch
from diffattn_cuda import (
    diff_flash_attn_func, diff_flash_attn_varlen_func, diff_flash_attn_with_kvcache)

dtype = getattr(torch, sys.argv[1])
digest = hashlib.sha256()
generator = torch.Generator().manual_seed(0)
def normal(*shape): return torch.randn(*shape, generator=generator).to(dtype)
def add(*tensors):
    for t in tensors: digest.update(t.detach().flatten().view(torch.uint8).numpy().tobytes())

for sq, sk, d, dv, h, hk, options in [
    (130, 130, 64, 128, 2, 2, dict(causal=True)), (77, 201, 40, 40, 4, 2, dict(window_size=(9, 4))),
    (65, 98, 128, 256, 2, 1, dict(causal=True, window_size=(33, -1))), (33, 1, 8, 16, 2, 2, {}),
    (50, 31, 24, 48, 2, 2, dict(causal=True, norm_eps=1e-5, out_scale=0.2, softmax_scale=-0.3)),
]:
    leaves = [normal(2, sq, 2 * h, d), normal(2, sk, 2 * hk, d), normal(2, sk, hk, dv)]
    leaves = [t.requires_grad_() for t in leaves] + [torch.tensor(0.7, requires_grad=True)]
    out, lse = diff_flash_attn_func(*leaves, return_lse=True, **options)
    add(out, lse, *torch.autograd.grad(out, leaves, normal(*out.shape)))

starts = torch.tensor([0, 7, 7, 60, 101], dtype=torch.int32)
q, k, v = normal(101, 4, 64), normal(101, 4, 64), normal(101, 2, 128)
add(diff_flash_attn_varlen_func(q, k, v, 0.8, starts, starts, 53, 53, causal=True))
caches = normal(2, 150, 4, 64), normal(2, 150, 2, 128)  # a chunk of 70 rows takes the forward's way
pads = torch.tensor([0, 3], dtype=torch.int32)
angles = torch.arange(150)[:, None] / 10 ** torch.arange(8)
q, k, v = normal(2, 70, 4, 64), normal(2, 70, 4, 64), normal(2, 70, 2, 128)
rotary = angles.cos().to(dtype), angles.sin().to(dtype)
add(diff_flash_attn_with_kvcache(q, *caches, 0.8, k, v, *rotary, cache_seqlens=41,
    cache_leftpad=pads, causal=True))
print(digest.hexdigest())
"""


@cache
def results(isa: str, dtype: str) -> str:
    """A digest of outputs and gradients; empty where the machine lacks the instructions."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, dtype],
        env=os.environ | {"DIFFATTN_CPU_ISA": isa},
        cwd=Path(__file__).resolve().parents[1],
        timeout=300,
        capture_output=True,
        text=True,
    )
    if f"DIFFATTN_CPU_ISA is {isa}, accepted" in done.stderr:
        return ""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wanted(isa: str, dtype: str) -> str:
    return results(isa, dtype) or pytest.skip(f"this machine has no {isa}")


def test_the_instructions_and_their_emulation_agree_bit_for_bit() -> None:
    assert wanted(NATIVE, "bfloat16") == wanted(EMULATED, "bfloat16")


def test_pairs_are_multiplied_in_bf16_alone() -> None:
    assert wanted(EMULATED, "bfloat16") != wanted("avx2", "bfloat16")
    assert wanted(EMULATED, "float16") == wanted("avx2", "float16")
