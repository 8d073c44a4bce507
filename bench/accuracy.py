"""Relative error (Frobenius norm, ×1e-3) of the output and dV against the fp64 formula.

    python bench/accuracy.py --dtype bf16

prints the table of docs/numerics.md: the library and its peers, on data that looks like the start
of training and data that does not.
"""

from __future__ import annotations

import argparse

import torch
from memory import step
from oracle import oracle
from peers import peers_for
from problem import DTYPES, Inputs, Problem, make_inputs

# logit standard deviation, and the size of V's channel means
REGIMES = {
    "random": (1.0, 0.0),
    "random, V with channel mean": (1.0, 1.0),
    "init-like logits": (0.04, 0.0),
    "init-like, V with channel mean": (0.04, 1.0),
    "sharp logits": (4.0, 0.0),
}
WAYS = ("ours", "sdpa2", "sdpa4", "eager")


def inputs(p: Problem, logit_sd: float, mean: float, lam: float) -> Inputs:
    """Normal q, k, v with q scaled to the wanted logits and a constant added to each V channel."""
    x = make_inputs(p)
    gen = torch.Generator().manual_seed(1)
    channel = mean * torch.randn(p.nheads_k, 2 * p.headdim, generator=gen)
    with torch.no_grad():
        x.q.mul_(logit_sd)
        x.v.add_(channel.to(x.v.dtype))
        x.lam.fill_(lam)
    return x


def errors(x: Inputs, way: str, want: list[torch.Tensor]) -> tuple[float, float]:
    """Of the output and of dV."""
    got = step(peers_for("fwdbwd")[way], x)
    out, dv = ((got[i].detach().double() - want[i]).norm() / want[i].norm() for i in (0, 3))
    return out.item(), dv.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--lam", type=float, nargs="+", default=[0.8, 1.0])
    args = parser.parse_args()
    p = Problem("fwdbwd", args.dtype, 1, 4, 4, args.seqlen, args.seqlen, 64, causal=True)
    print("| data | λ | " + " | ".join(f"{w}: out, dV" for w in WAYS) + " |")
    print("|---|---:|" + "---:|" * len(WAYS))
    for name, (logit_sd, mean) in REGIMES.items():
        for lam in args.lam:
            x = inputs(p, logit_sd, mean, lam)
            want = oracle(x)
            pairs = (errors(x, way, want) for way in WAYS)
            cells = [name, f"{lam:g}", *(f"{1e3 * o:.3g}, {1e3 * dv:.3g}" for o, dv in pairs)]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
