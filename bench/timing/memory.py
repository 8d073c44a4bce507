"""Extra resident memory of one call, measured in a fresh process.

Run as a program it prints one JSON line; speed.py --memory runs it for each peer. Extra is the peak
of the resident set during the call, minus the resident set before it, minus the tensors that the
call returns. What autograd saves between forward and backward counts as extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from .peers import Peer, inputs_for, peers_for
from .problem import Inputs, Problem, make_inputs

BENCH = Path(__file__).resolve().parent.parent
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): "reset the peak resident set size to the current resident set size"


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def step(peer: Peer, x: Inputs) -> list[Tensor]:
    """One forward, with its backward if there is one; returns the output and the gradients."""
    out = peer(x)
    if x.dout is None:
        return [out]
    return [out, *torch.autograd.grad(out, x.leaves, x.dout)]


def extra_bytes(name: str, p: Problem) -> int:
    """Peak − before − outputs, after a small call has loaded libraries and started threads."""
    peer = peers_for(p.direction, streaming=p.streaming, grouped=p.signal_per_noise > 1)[name]
    small = dataclasses.replace(p, seqlen_q=min(p.seqlen_q, 64), seqlen_k=64)
    step(peer, inputs_for(name, make_inputs(small)))
    x = inputs_for(name, make_inputs(p))
    CLEAR_REFS.write_text(RESET_PEAK)
    before = resident("VmRSS")
    outputs = step(peer, x)
    peak = resident("VmHWM")
    return peak - before - sum(t.numel() * t.element_size() for t in outputs)


def measure(name: str, p: Problem, threads: int) -> int | str:
    """Extra bytes in a fresh process, or the last line of its error."""
    command = [sys.executable, "-m", "timing.memory", "--peer", name, "--threads", str(threads)]
    command += ["--problem", json.dumps(dataclasses.asdict(p))]
    path = os.pathsep.join([str(BENCH), *sys.path])
    environment = dict(os.environ) | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return int(json.loads(done.stdout.splitlines()[-1])["extra_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--problem", required=True, help="the fields of a Problem, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    p = Problem(**json.loads(args.problem))
    print(json.dumps({"extra_bytes": extra_bytes(args.peer, p)}))


if __name__ == "__main__":
    main()
