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
    add("--nheads-k", nargs="+", type=int, help="default: as many as --nheads")
    add("--batch", nargs="+", type=int, default=[1])
    add("--tokens", type=int, help="batch = tokens / seqlen, instead of --batch")
    add("--mask", nargs="+", choices=["causal", "full"], default=["causal"])
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
    if args.config is None:
        return [args]
    tables = tomllib.loads(args.config.read_text())["sweep"]
    return [made.parse_args([*_options(table), *command_line]) for table in tables]


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
            args.dtype, args.headdim, args.nheads_k or [args.nheads], args.mask,
            args.seqlens or SEQLENS[direction], args.batch,
        )  # fmt: skip
        for dtype, d, nheads_k, mask, seqlen, batch in axes:
            decode = direction == "decode"
            yield Problem(
                direction,
                dtype,
                max(1, args.tokens // seqlen) if args.tokens else batch,
                args.nheads,
                nheads_k,
                1 if decode else seqlen,
                seqlen,
                d,
                mask == "causal" and not decode,
                args.device,
            )
