"""The demo's model trains on the simulated GPU: loss and gradients under the law, end to end."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from support.impls import Impl
from support.law import FORWARD, GRADIENT, enforce, judge
from support.simulator import Simulator
from support.threads import threads

EXAMPLES = Path(__file__).parents[1] / "examples"
# Autocast rounds to bf16 what it returns in fp32: the unit roundoff that counts is bf16's.
COARSER = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps


@threads(1)
def one_step(implementation: str, mixed: bool) -> dict[str, Any]:
    """Loss and gradients of examples/diff_lm.py's model at its first step, as numpy arrays.

    mixed: bf16 autocast, as examples/train_lm.py trains on a GPU.
    """
    sys.path.append(str(EXAMPLES))
    from diff_lm import DiffLM

    torch.manual_seed(0)
    model = DiffLM(128, 2, heads=2, kv_heads=1, max_seqlen=70, implementation=implementation)
    tokens = torch.randint(256, (2, 70))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = model.loss(tokens)
    loss.backward()
    found = {name: x.grad.numpy() for name, x in model.named_parameters() if x.grad is not None}
    return {"loss": loss.detach().numpy()} | found


@pytest.fixture(scope="module")
def exact() -> dict[str, Any]:
    """fp32, whose error is a thousandth of bf16's."""
    return one_step("eager", mixed=False)


@pytest.fixture(scope="module")
def of_cpu() -> dict[str, Any]:
    """In a process of its own: in this one the simulator has taken the CPU's place."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(one_step, "fused", True).result()


def hold_to_the_law(got: dict[str, Any], exact: dict[str, Any], of_cpu: dict[str, Any]) -> None:
    """A row of a weight's gradient may err as far as the CPU's does, or as its rows on average."""
    assert got.keys() == exact.keys() == of_cpu.keys()
    for name, gradient in got.items():
        x, right, peer = (
            torch.atleast_1d(torch.as_tensor(y)) for y in (gradient, exact[name], of_cpu[name])
        )
        squares = (peer - right).double().square().sum(-1)
        squares = torch.maximum(squares, squares.mean())
        factor = FORWARD if name == "loss" else GRADIENT
        enforce(judge(name, x, right, squares, COARSER * right.norm(dim=-1), factor))


def test_one_step(
    impl: Impl, sim: Simulator, exact: dict[str, Any], of_cpu: dict[str, Any]
) -> None:
    hold_to_the_law(one_step("fused", mixed=True), exact, of_cpu)


def test_a_wrong_backward_is_seen(
    impl: Impl,
    sim: Simulator,
    exact: dict[str, Any],
    of_cpu: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """dQ and dK that are a fiftieth too long, of maps that are a little too sharp."""

    def scaled(params: Any) -> None:
        if isinstance(params, sim.binding.BwdParams):
            params.softmax_scale *= 1.02
        sim.launch_described(params)

    monkeypatch.setattr(sim, "serve", scaled)
    with pytest.raises(AssertionError, match="the law is broken"):
        hold_to_the_law(one_step("fused", mixed=True), exact, of_cpu)
