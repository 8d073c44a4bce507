"""Which problems to measure, and how: from the command line, or from the tables of a TOML file.

    [[sweep]]                       # as many as are wanted, one after another
    direction = ["fwd", "fwdbwd"]   # keys are the options' names, with - or _
    seqlens = [1024, 2048]
    mask = ["causal", "full"]

Options on the command line win over the file's.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .peers import PEERS
from .problem import DTYPES, Problem

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LENGTHS = [512, 1024, 2048, 4096]
SEQLENS = {"fwd": LENGTHS, "bwd": LENGTHS, "fwdbwd": LENGTHS, "decode": [65536]}


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--config", type=Path, help="a TOML file of sweeps, see bench/timing/sweep.py")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--direction", nargs="+", choices=list(SEQLENS), default=["fwd"])
    add("--dtype", nargs="+", choices=list(DTYPES), default=["fp32"])
    add("--seqlens", nargs="+", type=int, help="default: 512 1024 2048 4096; decode 65536")
    add("--headdim", nargs="+", type=int, default=[64])
    add("--nheads", type=int, default=4)
    add("--nheads-k", nargs="+", type=int, help="default: as many as groups of maps")
    add("--batch", nargs="+", type=int, default=[1])
    add("--tokens", type=int, help="batch = tokens / seqlen, instead of --batch")
    add("--mask", nargs="+", choices=["causal", "full"], default=["causal"])
    add("--sink", type=int, default=0, help="keys that a head that streams sees besides its window")
    add("--left", type=int, default=255, help="and how many before its own key")
    add("--streaming-share", nargs="+", type=float, default=[0.0], help="of the KV heads; 0 to 1")
    add("--signal-per-noise", nargs="+", type=int, default=[1], help="signal maps of a group")
    add("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    add("--rounds", type=int, default=11)
    add("--budget", type=float, default=20.0, help="seconds a peer may take over all its rounds")
    add("--peers", nargs="*", choices=list(PEERS), help="default: all that there are")
    add("--cpu-time", action="store_true", help="CPU time, not wall time: for --threads 1")
    add("--minutes", type=float, help="no problem begins later than this")
    add("--memory", action="store_true", help="measure extra resident memory instead of time")
    add("--csv", type=Path)
    return made


def sweeps(description: str, command_line: list[str]) -> list[argparse.Namespace]:
    """One without --config, else one for each table of the file."""
    made = parser(description)
    args = made.parse_args(command_line)
    found = [args]
    if args.config is not None:
        tables = tomllib.loads(args.config.read_text())["sweep"]
        found = [made.parse_args([*_options(table), *command_line]) for table in tables]
    for sweep in found:
        if not all(0 <= share <= 1 for share in sweep.streaming_share):
            made.error(f"--streaming-share is {sweep.streaming_share}, accepted: 0 to 1")
        if any(sweep.streaming_share) and sweep.mask == ["full"]:
            made.error("--streaming-share was given with --mask full, accepted: --mask causal")
        if max(sweep.signal_per_noise) > 1 and any(sweep.streaming_share):
            made.error("--streaming-share was given with --signal-per-noise, accepted: one of them")
        for r in sweep.signal_per_noise:
            if (
                r < 1
                or sweep.nheads % r
                or any(sweep.nheads // r % n for n in sweep.nheads_k or [])
            ):
                made.error(
                    f"--signal-per-noise is {r}, accepted: what divides --nheads {sweep.nheads} "
                    "into groups of which each of --nheads-k has whole ones"
                )
        if min(sweep.sink, sweep.left) < 0:
            made.error(f"--sink and --left are {sweep.sink} and {sweep.left}, accepted: 0 or more")
    return found


def _options(table: dict[str, Any]) -> Iterator[str]:
    """A table as command-line options, so that both are checked in the same way."""
    for key, value in table.items():
        if value is not False:
            yield "--" + key.replace("_", "-")
        if not isinstance(value, bool):
            yield from map(str, value if isinstance(value, list) else [value])


def problems(args: argparse.Namespace) -> Iterator[Problem]:
    for direction in args.direction:
        axes = itertools.product(
            args.dtype, args.headdim, args.nheads_k or [None], args.mask,
            args.seqlens or SEQLENS[direction], args.batch, args.streaming_share,
            args.signal_per_noise,
        )  # fmt: skip
        for dtype, d, nheads_k, mask, seqlen, batch, share, r in axes:
            decode = direction == "decode"
            if share and mask == "full":
                continue  # heads stream under a causal mask alone
            yield Problem(
                direction,
                dtype,
                max(1, args.tokens // seqlen) if args.tokens else batch,
                args.nheads,
                nheads_k or args.nheads // r,
                1 if decode else seqlen,
                seqlen,
                d,
                mask == "causal" and (not decode or share > 0),
                args.device,
                sink=args.sink if share else 0,
                left=args.left if share else -1,
                streaming_share=share,
                signal_per_noise=r,
            )
