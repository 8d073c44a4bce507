"""Time and memory of a decoding step over the context, on the CPU, by the share of full heads.

    python bench/ring.py                                  # 4K to 64K tokens
    python bench/ring.py --seqlens 4096 8192 --csv ring.csv
    python bench/ring.py --threads 2                      # on a machine that has nothing else to do

A token of one sequence, 8 KV heads, d = 64, sink 64, 256 recent keys. Milliseconds of one thread's
CPU time, or of a clock on the wall if there are more threads; medians over interleaved rounds. MB
are those of the caches.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffattn_cuda import diff_flash_attn_with_kvcache
from diffattn_cuda.ring import Ring

HEADS, D, SINK, RECENT = 8, 64, 64, 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FULL = {
    "all heads full": HEADS, "half of them": HEADS // 2, "a quarter": HEADS // 4, "rings alone": 0,
}  # fmt: skip


def step(seqlen: int, full: int, dtype: torch.dtype) -> tuple[Callable[[], Any], int]:
    """A step that appends the last of `seqlen` tokens, and the bytes of its caches."""

    def caches(slots: int, heads: int) -> tuple[Tensor, Tensor]:
        k = torch.randn(1, heads, slots, 2 * D).to(dtype)  # heads first: a head's rows follow
        v = torch.randn(1, heads, slots, 2 * D).to(dtype)
        return k.transpose(1, 2).unflatten(-1, (2, D)), v.transpose(1, 2)

    q, k = torch.randn(2, 1, 1, 2 * HEADS, D).to(dtype)
    v = torch.randn(1, 1, HEADS, 2 * D).to(dtype)
    options: dict[str, Any] = {"cache_seqlens": seqlen - 1, "causal": True}
    stored: tuple[Tensor, ...] = caches(seqlen if full else 0, full)
    if full < HEADS:
        ring = caches(Ring.of_step(SINK, RECENT, 1).slots, HEADS - full)
        options |= {"window_size": (RECENT - 1, 0), "sink_size": SINK}
        options |= {"streaming_heads": [h >= full for h in range(HEADS)]}
        options |= {"k_stream": ring[0], "v_stream": ring[1]}
        stored = (*stored, *ring)
    call = (q, stored[0], stored[1], 0.5, k, v)
    nbytes = sum(t.nbytes for t in stored)
    return lambda: diff_flash_attn_with_kvcache(*call, **options), nbytes


def measure(
    seqlens: list[int], dtype: str, rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    steps = {(s, n): step(s, full, DTYPES[dtype]) for s in seqlens for n, full in FULL.items()}
    taken: dict[tuple[int, str], list[float]] = {key: [] for key in steps}
    for call, _ in steps.values():
        call()
    for _ in range(rounds):
        for key, (call, _) in steps.items():
            begin = clock()
            for _ in range(20):
                call()
            taken[key].append((clock() - begin) / 20)
    return [
        {
            "seqlen": seqlen, "heads": name, "dtype": dtype,
            "ms": round(1e3 * statistics.median(taken[seqlen, name]), 4),
            "MB": round(nbytes / 1e6, 2),
        }
        for (seqlen, name), (_, nbytes) in steps.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--seqlens", nargs="+", type=int, default=[4096, 16384, 65536])
    add("--dtype", nargs="+", choices=DTYPES, default=["fp32"])
    add("--rounds", type=int, default=9)
    add("--threads", type=int, default=1)
    add("--csv", type=Path, help="write the rows there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Threads that wait for each other take CPU time too.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    rows = [row for dtype in args.dtype for row in measure(args.seqlens, dtype, args.rounds, clock)]
    for row in rows:
        what = f"{row['seqlen']:>7} {row['dtype']} {row['heads']:<15}"
        print(f"{what}{row['ms']:>9} ms{row['MB']:>9} MB")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
