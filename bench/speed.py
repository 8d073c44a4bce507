"""Time the library against its peers, in one run, every peer checked before it is timed.

    python bench/speed.py --device cpu                              # fp32 forward, S = 512 … 4096
    python bench/speed.py --dtype bf16 --direction fwdbwd --csv out.csv
    python bench/speed.py --direction decode --seqlens 65536 --dtype fp32 bf16
    python bench/speed.py --memory --seqlens 4096 --direction fwd fwdbwd

Columns: median milliseconds and their quartiles over interleaved rounds; "ours ×" how many times
faster ours is than this peer; GF/s of ours counting 8d flop a visible (query, key) pair forward and
28d with the backward; "% mm" of the rate that torch.mm reaches in fp32 in the same rounds; for
decode the bytes of the cache a second, and "% bw" of the fastest large read of the same run.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from memory import measure, step
from oracle import mistake, oracle
from peers import PEERS, Peer, peers_for
from problem import DTYPES, Inputs, Problem, make_inputs
from table import Row, commit, machine, show, write_csv
from timing import MM, Clock, Run, Samples, interleave, memory_bandwidth, mm_run

SEQLENS = {"fwd": [512, 1024, 2048, 4096], "fwdbwd": [512, 1024, 2048, 4096], "decode": [65536]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--direction", nargs="+", choices=list(SEQLENS), default=["fwd"])
    add("--dtype", nargs="+", choices=list(DTYPES), default=["fp32"])
    add("--seqlens", nargs="+", type=int, help="default: 512 1024 2048 4096; decode 65536")
    add("--headdim", nargs="+", type=int, default=[64])
    add("--nheads", type=int, default=4)
    add("--nheads-k", type=int, help="default: as many as --nheads")
    add("--batch", type=int, default=1)
    add("--causal", action=argparse.BooleanOptionalAction, default=True)
    add("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    add("--rounds", type=int, default=11)
    add("--budget", type=float, default=20.0, help="seconds a peer may take over all its rounds")
    add("--peers", nargs="*", choices=list(PEERS), help="default: all that have the direction")
    add("--cpu-time", action="store_true", help="CPU time, not wall time: for --threads 1")
    add("--memory", action="store_true", help="measure extra resident memory instead of time")
    add("--csv", type=Path)
    return parser.parse_args()


def clock_of(args: argparse.Namespace) -> Clock:
    return Clock(args.device, args.cpu_time)


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    for direction in args.direction:
        axes = itertools.product(args.dtype, args.headdim, args.seqlens or SEQLENS[direction])
        for dtype, d, s in axes:
            decode = direction == "decode"
            yield Problem(
                direction,
                dtype,
                args.batch,
                args.nheads,
                args.nheads_k or args.nheads,
                1 if decode else s,
                s,
                d,
                args.causal and not decode,
                args.device,
            )


def chosen(args: argparse.Namespace, direction: str) -> dict[str, Peer]:
    every = peers_for(direction)
    return {n: f for n, f in every.items() if n == "ours" or args.peers is None or n in args.peers}


def checked(peers: dict[str, Peer], x: Inputs) -> dict[str, Run]:
    """The peers that run and are right, as calls without arguments; says why for the others."""
    want = oracle(x)
    runs: dict[str, Run] = {}
    for name, peer in peers.items():
        try:
            wrong = mistake(step(peer, x), want, x.problem.dtype)
        except (ImportError, NotImplementedError, RuntimeError) as error:
            wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if wrong:
            print(f"  {name} is left out: {wrong}", flush=True)
        else:
            runs[name] = lambda peer=peer: step(peer, x)  # type: ignore[misc]
    return runs


def time_problem(p: Problem, args: argparse.Namespace, bandwidth: float | None) -> list[Row]:
    """One table: every right peer and torch.mm, interleaved."""
    runs = checked(chosen(args, p.direction), make_inputs(p))
    mm, mm_flop = mm_run(p.device)
    samples = interleave({**runs, MM: mm}, args.rounds, args.budget, clock_of(args))
    mm_rate = mm_flop / samples[MM].median
    ours = samples.get("ours")
    return [row(p, name, s, ours, mm_rate, mm_flop, bandwidth) for name, s in samples.items()]


def row(
    p: Problem,
    name: str,
    s: Samples,
    ours: Samples | None,
    mm_rate: float,
    mm_flop: int,
    bandwidth: float | None,
) -> Row:
    mine = name == "ours"
    flop = {"ours": p.flop, MM: mm_flop}.get(name)
    rate = flop / s.median if flop else None
    read = p.cache_bytes / s.median if bandwidth and name != MM else None
    return Row(
        problem=p,
        threads=torch.get_num_threads(),
        peer=name,
        rounds=len(s.seconds),
        ms=s.median * 1e3,
        ms_p25=s.quartiles[0] * 1e3,
        ms_p75=s.quartiles[1] * 1e3,
        ours_speedup=s.median / ours.median if ours and not mine and name != MM else None,
        gflops=rate / 1e9 if rate else None,
        mm_percent=100 * rate / mm_rate if rate else None,
        gbytes=read / 1e9 if read else None,
        bandwidth_percent=100 * read / bandwidth if read and bandwidth else None,
    )


def show_memory(p: Problem, args: argparse.Namespace) -> None:
    print(f"\n{p}: extra resident memory (peak − before − outputs), MiB")
    for name in chosen(args, p.direction):
        extra = measure(name, p, torch.get_num_threads())
        print(
            f"  {name:<6} {extra if isinstance(extra, str) else f'{extra / 2**20:9.1f}'}",
            flush=True,
        )


def main() -> None:
    args = arguments()
    print(" · ".join(machine().values()), "· commit", commit())
    rows: list[Row] = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        bandwidth = None
        if "decode" in args.direction and not args.memory:
            bandwidth = memory_bandwidth(clock_of(args))
            print(f"memory bandwidth, {threads} threads: {bandwidth / 1e9:.1f} GB/s (large read)")
        for p in problems(args):
            if args.memory:
                show_memory(p, args)
                continue
            rows += (table := time_problem(p, args, bandwidth if p.direction == "decode" else None))
            show(f"{p} · {threads} threads", table)
            if args.csv:
                write_csv(args.csv, rows)


if __name__ == "__main__":
    main()
