"""What a soft cap costs on the CPU: with one, without, and as the formula in eager PyTorch.

    python bench/softcap.py
    python bench/softcap.py --seqlens 512 --dtype bf16

Causal, 4 heads, d = 64, V of width 128. Milliseconds of one thread's CPU time, medians over
interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from diffattn_cuda import diff_flash_attn_func, reference

HEADS, D, CAP = 4, 64, 30.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def calls(seqlen: int, dtype: torch.dtype, training: bool) -> dict[str, Callable[[], None]]:
    q, k = torch.randn(2, 1, seqlen, 2 * HEADS, D).to(dtype)
    v = torch.randn(1, seqlen, HEADS, 2 * D).to(dtype)
    for leaf in (q, k, v):
        leaf.requires_grad_(training)

    def call(function: Callable[..., torch.Tensor], softcap: float) -> None:
        out = function(q, k, v, 0.8, causal=True, softcap=softcap)
        if training:
            torch.autograd.grad(out.sum(), (q, k, v))

    return {
        "no cap": lambda: call(diff_flash_attn_func, 0.0),
        "capped": lambda: call(diff_flash_attn_func, CAP),
        "eager, capped": lambda: call(reference.diff_flash_attn_func, CAP),
    }


def milliseconds(of: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in of}
    for call in of.values():
        call()
    for _ in range(rounds):
        for name, call in of.items():
            begin = time.process_time()
            call()
            taken[name].append(time.process_time() - begin)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--seqlens", nargs="+", type=int, default=[512, 2048])
    add("--dtype", nargs="+", choices=DTYPES, default=[*DTYPES])
    add("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in args.dtype:
        for seqlen in args.seqlens:
            for training in (False, True):
                found = milliseconds(calls(seqlen, DTYPES[dtype], training), args.rounds)
                what = f"{seqlen:>6} {dtype} {'forward + backward' if training else 'forward':<18}"
                print(what + "".join(f"  {name} {ms:.2f} ms" for name, ms in found.items()))


if __name__ == "__main__":
    main()
