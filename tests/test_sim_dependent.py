"""Decoding on a simulated H100, whose kernels begin while the ones before them end.

The simulator calls it a race if a kernel touches what the one before writes, or overwrites what
that reads, without having waited.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cache import make_cache
from support.case import Case
from support.impls import Impl
from support.sim_memory import described
from support.sim_regions import registered
from support.simulator import Simulator, ptxsim
from test_kvcache import check_step

BASE = Case(heads=4, heads_k=2, d=64, dv=128, causal=True, lam="token", norm="affine",
            dtype=torch.bfloat16)  # fmt: skip
ROWS = pytest.mark.parametrize("sq", [1, 9], ids=["few", "many"])
KERNELS = ["append_kernel", "decode_kernel", "combine_kernel"]


@pytest.fixture(autouse=True)
def hopper(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIFFATTN_CUDA_KERNELS", "sm90")
    with sim.on("sm_90"):
        sim.device.launches()  # forget those of other tests
        yield


def names(sim: Simulator) -> list[str]:
    """Of the kernels launched since the last call."""
    found = [name for name, _ in sim.device.launches()]
    return [next(part for part in KERNELS if part in name) for name in found]


@ROWS
def test_any_seed(impl: Impl, sim: Simulator, sq: int) -> None:
    for seed in range(20):
        with sim.on("sm_90", seed):
            cache = make_cache(BASE.but(sq=sq), impl, "paged16", [150, 33])
            check_step(impl, cache, sq, num_splits=3)
            assert names(sim) == ["decode_kernel", "combine_kernel"]


@pytest.mark.parametrize("splits", [1, 3])
def test_a_prompt_is_appended_first(impl: Impl, sim: Simulator, splits: int) -> None:
    """Its keys are read by a kernel that depends on the one that appends them."""
    sim.device.launches()
    check_step(impl, make_cache(BASE.but(sq=70), impl, "paged16", [150, 33]), 70, num_splits=splits)
    assert names(sim) == KERNELS[: 2 + (splits > 1)]


@pytest.mark.parametrize("lengths", [[0, 0], [0, 33]], ids=str)
def test_rows_without_keys_wait_for_none(impl: Impl, lengths: list[int]) -> None:
    check_step(impl, make_cache(BASE, impl, "paged16", lengths), 0, num_splits=3)


@ROWS
def test_the_bits_are_those_of_ordinary_launches(
    impl: Impl, monkeypatch: pytest.MonkeyPatch, sq: int
) -> None:
    def step() -> Any:
        cache = make_cache(BASE.but(sq=sq), impl, "paged16", [150, 33])
        arguments = cache.arguments | cache.problem.options()
        return impl.kvcache(
            cache.problem.q, cache.k, cache.v, cache.problem.lam, num_splits=3, **arguments
        )

    dependent = step()
    monkeypatch.setenv("DIFFATTN_CUDA_KERNELS", "sm80")
    assert torch.equal(step(), dependent)


def run_as_graph(sim: Simulator, params: Any, launches: int) -> None:
    """Captures what the host launches, and launches the graph."""
    runtime = ctypes.CDLL(str(ptxsim.engine_folder / "libptxsim_engine.so"))
    stream, graph, executable = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    workspace = []

    def lend(nbytes: int) -> int:
        workspace.append(sim.device.empty(max(nbytes, 1), "uint8", "workspace"))
        return int(workspace[0].ptr)

    with registered(sim.device, described(params)), sim.device:
        assert runtime.cudaStreamCreateWithPriority(ctypes.byref(stream), 0, 0) == 0
        assert runtime.cudaStreamBeginCapture(stream, 0) == 0
        params.launch(lend, stream.value)
        assert runtime.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
        assert sim.device.launches() == [], "a captured kernel ran"
        assert (
            runtime.cudaGraphInstantiate(ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
            == 0
        )
        for _ in range(launches):
            runtime.cudaGraphLaunch(executable, stream)
            ptxsim.raise_pending()
        runtime.cudaGraphExecDestroy(executable)
        runtime.cudaGraphDestroy(graph)


@pytest.mark.parametrize("sq", [1, 70], ids=["step", "prompt"])
def test_a_graph_captures_a_step(
    impl: Impl, sim: Simulator, monkeypatch: pytest.MonkeyPatch, sq: int
) -> None:
    monkeypatch.setattr(sim, "serve", lambda params: run_as_graph(sim, params, 2))
    sim.device.launches()
    check_step(impl, make_cache(BASE.but(sq=sq), impl, "paged16", [150, 33]), sq, num_splits=3)
    once = KERNELS if sq > 64 else KERNELS[1:]
    assert names(sim) == once * 2


# Runs a step on kernels that do not wait.
WITHOUT_WAITS = """
import sys
from support.cache import make_cache
from support.impls import load
from test_kvcache import check_step
from test_sim_dependent import BASE, ptxsim

sq, kernel = int(sys.argv[1]), sys.argv[2]
ptxsim.on_ptx(lambda text: text.replace("griddepcontrol.wait;", "") if kernel in text else text)
impl = load("sim", "package", "sm_90", 0)
check_step(impl, make_cache(BASE.but(sq=sq), impl, "paged16", [150, 33]), sq, num_splits=3)
"""


@pytest.mark.parametrize("sq, kernel", [(1, "combine_kernel"), (70, "decode_kernel")], ids=str)
def test_a_kernel_that_does_not_wait_is_caught(sq: int, kernel: str) -> None:
    """In a process of its own, where no kernel has been parsed yet."""
    command = [sys.executable, "-c", WITHOUT_WAITS, str(sq), kernel]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 1 and "Race with a prerequisite grid" in done.stderr, done.stderr
