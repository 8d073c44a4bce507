"""Relative errors (Frobenius norm) of the output and the gradients against the fp64 formula.

    python bench/accuracy.py --simulate --csv docs/accuracy.csv

Compares ours on the CPU and, with --simulate, the CUDA kernels in the simulator with two calls of a
stock kernel (emulated), PyTorch's own attention and the eager formula, on data that looks like the
start of training and on data that does not. bench/plot.py draws it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from stock import stock2
from timing.memory import step
from timing.peers import Peer, peers_for
from timing.problem import DTYPES, NAMES, Inputs, Problem, make_inputs, oracle
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Regime:
    logit_sd: float = 1.0
    mean: float = 0.0  # standard deviation of V's channel means
    noise: float | None = None  # q2 = q1 and k2 = k1, except for this share of them


REGIMES = {
    "random": Regime(),
    "random, V with channel mean": Regime(mean=1.0),
    "init-like logits": Regime(logit_sd=0.04),
    "init-like, V with channel mean": Regime(logit_sd=0.04, mean=1.0),
    "q2 ≈ q1, k2 ≈ k1 (10 % noise)": Regime(noise=0.1),
    "sharp logits": Regime(logit_sd=4.0),
}


@dataclass(frozen=True)
class Error:
    data: str
    lam: float
    way: str  # cpu, cuda, two calls, or a name of timing/peers.py
    tensor: str  # out, dq, dk or dv
    error: float


def inputs(p: Problem, regime: Regime, lam: float) -> Inputs:
    """Normal q, k, v, then what the regime asks for."""
    x = make_inputs(p)
    gen = torch.Generator().manual_seed(1)
    channel = regime.mean * torch.randn(p.nheads_k, 2 * p.headdim, generator=gen)
    with torch.no_grad():
        if regime.noise is not None:
            for t in (x.q, x.k):
                t[:, :, 1::2] = t[:, :, ::2] + regime.noise * t[:, :, 1::2]
        x.q.mul_(regime.logit_sd)
        x.v.add_(channel.to(x.v.dtype))
        x.lam.fill_(lam)
    return x


Asked = tuple[str, float, Inputs, list[Tensor]]  # data, lambda, and the right answer


def problems(p: Problem, lams: list[float]) -> Iterator[Asked]:
    for data, regime in REGIMES.items():
        for lam in lams:
            x = inputs(p, regime, lam)
            yield data, lam, x, oracle(x)


def errors(way: str, peer: Peer, asked: list[Asked]) -> Iterator[Error]:
    for data, lam, x, want in asked:
        for name, a, b in zip(NAMES, step(peer, x), want, strict=False):  # want ends before dλ
            error = (a.detach().double() - b).norm() / b.norm()
            yield Error(data, lam, way, name, error.item())


def simulate() -> None:
    """From here on the simulated GPU serves CPU tensors."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from support import simulator

    simulator.start()


def show(rows: list[Error]) -> None:
    ways = list(dict.fromkeys(row.way for row in rows))
    found = {(r.data, r.lam, r.way, r.tensor): r.error for r in rows}
    print(f"| error × 1000: {', '.join(NAMES)} | λ | {' | '.join(ways)} |")
    print("|---|---:|" + "---:|" * len(ways))
    for data, lam in dict.fromkeys((r.data, r.lam) for r in rows):
        cells = (", ".join(f"{1e3 * found[data, lam, w, n]:.3g}" for n in NAMES) for w in ways)
        print(f"| {data} | {lam:g} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--lam", type=float, nargs="+", default=[0.8, 1.0])
    parser.add_argument("--simulate", action="store_true", help="the CUDA kernels too")
    parser.add_argument("--csv", type=Path, help="also write the errors there")
    args = parser.parse_args()
    p = Problem("fwdbwd", args.dtype, 1, 4, 4, args.seqlen, args.seqlen, 64, causal=True)
    asked = list(problems(p, args.lam))
    peers = peers_for("fwdbwd")
    ways = {"cpu": peers["ours"], "two calls": stock2}
    ways |= {name: peers[name] for name in ("sdpa2", "sdpa4", "eager")}
    rows = [row for way, peer in ways.items() for row in errors(way, peer, asked)]
    if args.simulate:
        simulate()
        rows += errors("cuda", ways["cpu"], asked)
    show(rows)
    if args.csv:
        write(args.csv, rows)


def write(path: Path, rows: list[Error]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Error)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) | {"error": f"{row.error:.6g}"} for row in rows)


if __name__ == "__main__":
    main()
