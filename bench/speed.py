"""Time the library and its peers in one run; every peer is checked before it is timed.

    python bench/speed.py --device cpu                              # fp32 forward, S = 512 … 4096
    python bench/speed.py --dtype bf16 --direction fwdbwd --csv out.csv
    python bench/speed.py --direction decode --seqlens 65536 --dtype fp32 bf16
    python bench/speed.py --seqlens 4096 --sink 64 --left 255 --streaming-share 0.5 1
    python bench/speed.py --headdim 128 --signal-per-noise 4 --direction fwd fwdbwd
    python bench/speed.py --memory --seqlens 4096 --direction fwd fwdbwd
    python bench/speed.py --device cuda --config tools/gpu_day/speed.toml --csv gpu.csv

Columns: median milliseconds and their quartiles over interleaved rounds; "ours ×" how many times
faster ours is than this peer; GF/s of ours counting 8d flop a visible (query, key) pair forward and
20d backward, of r signals to a noise (6 + 2/r)d and (14 + 6/r)d; "% mm" of the rate that torch.mm
reaches in the same rounds, in the problem's dtype (on a CPU in fp32 where that is faster); for
decode the bytes of the cache per second, and "% bw" of the bytes per second of a large read in the
same rounds.

On CUDA time is the GPU's own, with a cold L2 cache; SDPA's backends are peers one by one, and so
are flash-attn, FlashAttention-3 and 4, FlashInfer and flex_head_fa where they are installed. This
side has never run, because no GPU was available; tests/test_bench_speed.py tests its recipes and
its clock with stand-ins.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import replace
from functools import partial

import torch
from timing.clocks import (
    LIMITS,
    MM,
    READ,
    Clock,
    CpuClock,
    CudaClock,
    Run,
    Samples,
    interleave,
    mm_run,
    read_run,
)
from timing.memory import measure, step
from timing.peers import Peer, in_our_order, inputs_for, peers_for
from timing.problem import DTYPES, Inputs, Problem, make_inputs, mistake, oracle
from timing.rows import Row, commit, machine, show, write_csv
from timing.sweep import problems, sweeps

CHECKED = 4096  # longer sequences are checked at this length: the oracle holds S×S maps in fp64


def clock_of(args: argparse.Namespace) -> Clock:
    return CudaClock() if args.device == "cuda" else CpuClock(args.cpu_time)


def chosen(args: argparse.Namespace, p: Problem) -> dict[str, Peer]:
    every = peers_for(p.direction, args.device, p.streaming, p.signal_per_noise > 1)
    return {n: f for n, f in every.items() if n == "ours" or args.peers is None or n in args.peers}


def shortened(p: Problem) -> Problem:
    if p.seqlen_q == 1:
        return p
    return replace(p, seqlen_q=min(p.seqlen_q, CHECKED), seqlen_k=min(p.seqlen_k, CHECKED))


def right(peers: dict[str, Peer], x: Inputs) -> list[str]:
    """The peers that run and are right; says why for the others."""
    want = oracle(x)
    names = []
    for name, peer in peers.items():
        try:
            own = inputs_for(name, x)
            got = in_our_order(name, step(peer, own))
            right_one = want if own.problem == x.problem else oracle(own)
            wrong = mistake(got, right_one, x.problem.dtype)
        except Exception as error:  # a peer that cannot do this may raise any error
            wrong = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if wrong:
            print(f"  {name} is left out: {wrong}", flush=True)
        else:
            names.append(name)
    return names


def timed_call(peer: Peer, x: Inputs) -> Run:
    """What is timed of a peer; for a backward alone, that one, repeatedly after one forward."""
    if x.problem.direction != "bwd":
        return partial(step, peer, x)
    return partial(torch.autograd.grad, peer(x), x.leaves, x.dout, retain_graph=True)


def calls(peers: dict[str, Peer], p: Problem) -> dict[str, Run]:
    """Each right peer as a call without arguments, called once already."""
    names, x = right(peers, make_inputs(shortened(p))), make_inputs(p)
    runs: dict[str, Run] = {}
    for name in names:
        run = timed_call(peers[name], inputs_for(name, x))
        try:
            run()
        except torch.OutOfMemoryError:
            print(f"  {name} is left out: too little memory", flush=True)
        else:
            runs[name] = run
    return runs


def time_problem(p: Problem, args: argparse.Namespace, clock: Clock) -> list[Row]:
    """One table: every right peer and the machine's limits, interleaved."""
    runs, work = calls(chosen(args, p), p), {}
    runs[MM], work[MM] = mm_run(p.device, clock, DTYPES[p.dtype])
    if p.direction == "decode":
        runs[READ], work[READ] = read_run(p.device, clock)
    samples = interleave(runs, args.rounds, args.budget, clock)
    limits = {name: amount / samples[name].median for name, amount in work.items()}
    ours = samples.get("ours")
    return [row(p, name, s, ours, limits) for name, s in samples.items()]


def row(p: Problem, name: str, s: Samples, ours: Samples | None, limits: dict[str, float]) -> Row:
    """`limits`: flop per second of torch.mm and, for decode, bytes per second of the read."""
    rate = limits[MM] if name == MM else p.flop / s.median if name == "ours" else None
    read = None
    if READ in limits and name != MM:
        read = limits[READ] if name == READ else p.cache_bytes / s.median
    peer = name != "ours" and name not in LIMITS
    return Row(
        problem=p,
        threads=torch.get_num_threads(),
        peer=name,
        rounds=len(s.seconds),
        ms=s.median * 1e3,
        ms_p25=s.quartiles[0] * 1e3,
        ms_p75=s.quartiles[1] * 1e3,
        ours_speedup=s.median / ours.median if ours and peer else None,
        gflops=rate / 1e9 if rate else None,
        mm_percent=100 * rate / limits[MM] if rate else None,
        gbytes=read / 1e9 if read else None,
        bandwidth_percent=100 * read / limits[READ] if read else None,
    )


def show_memory(p: Problem, args: argparse.Namespace) -> None:
    print(f"\n{p}: extra resident memory (peak − before − outputs), MiB")
    for name in chosen(args, p):
        extra = measure(name, p, torch.get_num_threads())
        print(
            f"  {name:<10} {extra if isinstance(extra, str) else f'{extra / 2**20:9.1f}'}",
            flush=True,
        )


def run_sweep(args: argparse.Namespace, rows: list[Row], command: str, start: float) -> None:
    """Adds to rows, and writes all of them after each problem."""
    clock = clock_of(args)
    for threads in args.threads:
        torch.set_num_threads(threads)
        for p in problems(args):
            if args.minutes is not None and time.monotonic() - start > 60 * args.minutes:
                print(f"{p} is not reached: {args.minutes:g} minutes are over", flush=True)
                continue
            if args.memory:
                show_memory(p, args)
                continue
            rows += (table := time_problem(p, args, clock))
            show(f"{p} · {threads} threads", table)
            if args.csv:
                write_csv(args.csv, rows, command)


def main(command_line: list[str]) -> None:
    rows: list[Row] = []
    start = time.monotonic()
    asked = sweeps(__doc__, command_line)
    place = machine()
    print(" · ".join(filter(None, place.values())), "· commit", commit())
    print(f"our CPU kernels use {place['our_isa']}, torch's {place['isa']}")
    for args in asked:
        run_sweep(args, rows, shlex.join(["python", "bench/speed.py", *command_line]), start)


if __name__ == "__main__":
    main(sys.argv[1:])
