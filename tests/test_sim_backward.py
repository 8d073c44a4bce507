"""What only a simulated GPU can show of backward: any order of CTAs, offsets beyond 32 bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.case import Case
from support.data import make_problem
from support.impls import Impl
from support.sim_build import ptxsim
from support.simulator import Simulator
from test_sim_memory import DIMS, HUGE, sparse_like
from torch import Tensor

# Several blocks of rows and of keys.
CASE = Case(batch=2, sq=40, sk=300, heads=4, heads_k=2, d=64, dv=128, dtype=torch.bfloat16)
CASE = CASE.but(norm="affine", lam="token")
OUTPUTS = ["dq", "dk", "dv", "dlam"]
# (batch, head, row) are the last dimensions of statistics; batch, row, head the first of all else.
PLACES = {"lse": (1, 3, 2, 0), "dlse": (1, 3, 2, 0), "rstd": (0, 2, 1)}
WITH_COMPONENTS = ("q", "k", "dq", "dk", "lse", "dlse")


def stretched(
    tensors: dict[str, Tensor], dim: str, reach: int, sim: Simulator
) -> dict[str, Tensor]:
    """All of the tensors that have such a dimension, with a huge stride there."""
    return {
        name: sparse_like(x, PLACES.get(name, range(4))[DIMS.index(dim)], reach, sim).copy_(x)
        for name, x in tensors.items()
        if name in WITH_COMPONENTS or (dim != "comp" and isinstance(x, Tensor) and x.dim() > 1)
    }


MASK = ("window_left", "window_right", "sink_size", "streaming_heads")


def arguments_of(case: Case) -> dict[str, Any]:
    """What autograd hands to the op, by name."""
    p = make_problem(case.but(lse=True))
    lam = p.lam_rows(torch.float32).contiguous()
    mask = dict(zip(MASK, p.mask(), strict=True))
    _, lse, o, o2, rstd = torch.ops.diffattn.fwd(
        p.q, p.k, p.v, lam, p.norm_weight, None, None, 0, 0, p.softmax_scale(), *p.mask(),
        p.norm_eps, p.out_scale, False, True,
    )  # fmt: skip
    return {
        "dout": p.dout, "dlse": p.dlse, "q": p.q, "k": p.k, "v": p.v, "lam": lam,
        "norm_weight": p.norm_weight, "o": o if o.numel() else _, "o2": o2, "lse": lse,
        "rstd": rstd, "cu_seqlens_q": None, "cu_seqlens_k": None, "max_seqlen_q": 0,
        "max_seqlen_k": 0, "softmax_scale": p.softmax_scale(), "norm_eps": p.norm_eps,
        "out_scale": p.out_scale, "deterministic": True,
    } | mask  # fmt: skip


def backward(arguments: dict[str, Any]) -> dict[str, Tensor]:
    gradients = torch.ops.diffattn.bwd(**arguments)
    return dict(zip([*OUTPUTS, "dweight"], gradients, strict=True))


# The last key block is the first to add. Under the window it is also the last to arrive, at all but
# the first head of a group: it sees all rows of a head, and the first key block only some.
ORDERS = {
    "full": CASE.but(batch=1, sq=60),
    "causal": CASE.but(batch=1, sq=108, causal=True),
    "overtaken": CASE.but(batch=1, sq=300, heads_k=1, window=(64, -1)),
    # Blocks of sinks come last, and count those of the window before them that see a step.
    "sinks": CASE.but(batch=1, sq=420, causal=True, window=(40, 0), sink=140),
    "mixed": CASE.but(
        batch=2, sq=300, causal=True, window=(100, 0), sink=5, streaming=(True, False)
    ),
}


@pytest.mark.parametrize("order", list(ORDERS))
def test_dq_is_summed_in_one_order(
    impl: Impl, sim: Simulator, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q = 0 and an LSE of 4 ln 2 make all of P 1/16, so the seed has no say in exp2's last bit.

    What the second 128 keys add to dQ takes back what the first add, so that order shows.
    """
    arguments = arguments_of(ORDERS[order].but(norm="none"))
    arguments["q"].zero_()
    arguments["lse"].fill_(4 * math.log(2))
    k, v = arguments["k"], arguments["v"]
    k[:, :128] *= 1024
    k[:, 128:256], v[:, 128:256] = -k[:, :128], v[:, :128]

    def dq(deterministic: bool, seed: int, ctas_at_once: int) -> Tensor:
        device = ptxsim.Device("sm_80", seed, threads=ctas_at_once)
        monkeypatch.setattr(sim, "device", device)
        return backward(arguments | {"deterministic": deterministic})["dq"]

    first = dq(True, seed=0, ctas_at_once=1)
    assert bool(first.any())
    assert all(torch.equal(dq(True, seed, 4), first) for seed in range(3))
    # One at a time: then only the seed orders the CTAs, and never the machine's load.
    assert not all(torch.equal(dq(False, seed, 1), first) for seed in range(6))


@pytest.mark.parametrize("reach", list(HUGE))
@pytest.mark.parametrize("dim", DIMS)
def test_huge_strides(
    impl: Impl, sim: Simulator, dim: str, reach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arguments_of(CASE)
    expected = backward(arguments)
    inputs = stretched(arguments, dim, HUGE[reach], sim)
    outputs = stretched({name: expected[name] for name in OUTPUTS}, dim, HUGE[reach], sim)
    for huge in outputs.values():
        huge.zero_()
    monkeypatch.setattr(sim, "serve", lambda params: launch_into(sim, params, outputs))
    got = backward(arguments | inputs) | outputs
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


def launch_into(sim: Simulator, params: Any, outputs: dict[str, Tensor]) -> None:
    """The binding allocates gradients densely, so these are put in behind it."""
    for name, to in outputs.items():
        for comp, view in enumerate(params.views(name)):
            apart = to.stride(3) * to.element_size() if comp else 0  # of the two maps
            view.data, (view.batch, view.row, view.head) = to.data_ptr() + apart, to.stride()[:3]
    sim.launch_described(params)
