"""Problems that run in the simulator, one head of bf16, and the counters of their launches.

How a kernel cuts its work is found by making the problem larger until the kernel does more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import simulator  # noqa: E402

from diffattn_cuda import diff_flash_attn_func  # noqa: E402

SIZES = (16, 32, 64, 128, 256)  # of tiles and blocks


@dataclass(frozen=True)
class Launch:
    kernel: str  # the mangled name
    counters: dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """(d, dv): DIFF V1 where V is twice as wide as Q; else V2, whose components share K."""

    d: int
    dv: int

    @property
    def k_components(self) -> int:
        return 2 if self.dv == 2 * self.d else 1


def normal(seed: int, *sizes: int) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(*sizes, generator=gen).to(torch.bfloat16)


@dataclass(frozen=True)
class Training:
    """A step of training."""

    arguments: list[Tensor]  # q, k, v, lambda (), weight (dv,)
    causal: bool
    normed: bool

    @classmethod
    def make(
        cls, shape: Shape, seqlen_q: int, seqlen_k: int, causal: bool, normed: bool = False
    ) -> Training:
        q = normal(0, 1, seqlen_q, 2, shape.d)
        k = normal(1, 1, seqlen_k, shape.k_components, shape.d)
        v = normal(2, 1, seqlen_k, 1, shape.dv)
        tensors = [q, k, v, torch.tensor(0.8), torch.ones(shape.dv)]
        return cls([x.requires_grad_() for x in tensors], causal, normed)

    def forward(self) -> Tensor:
        q, k, v, lam, weight = self.arguments
        norm: dict[str, Any] = {"norm_weight": weight, "norm_eps": 1e-5} if self.normed else {}
        out = diff_flash_attn_func(q, k, v, lam, causal=self.causal, **norm)
        assert isinstance(out, Tensor)
        return out

    def step(self) -> None:
        out = self.forward()
        out.backward(normal(3, *out.shape))


@cache
def training(
    shape: Shape, seqlen_q: int, seqlen_k: int, causal: bool, normed: bool = False
) -> list[Launch]:
    """Forward and backward."""
    return launches(Training.make(shape, seqlen_q, seqlen_k, causal, normed).step)


@cache
def on_hopper(shape: Shape, seqlen_q: int, seqlen_k: int, causal: bool) -> Launch:
    """The forward of sm_90a alone."""
    q, k, v, lam, _ = Training.make(shape, seqlen_q, seqlen_k, causal).arguments
    with torch.no_grad(), simulator.start().on("sm_90"):
        found = launches(lambda: diff_flash_attn_func(q, k, v, lam, causal=causal))
    return only(found, "fwd_kernel")


@cache
def inference(shape: Shape, seqlen_q: int, seqlen_k: int, causal: bool) -> list[Launch]:
    """The forward alone."""
    q, k, v, lam, _ = Training.make(shape, seqlen_q, seqlen_k, causal).arguments
    with torch.no_grad():
        return launches(lambda: diff_flash_attn_func(q, k, v, lam, causal=causal))


def saved_bytes(shape: Shape, seqlen: int) -> float:
    """Bytes per row that autograd keeps of the forward with the norm, beyond its arguments."""
    simulator.start()
    problem = Training.make(shape, seqlen, seqlen, True, normed=True)
    arguments = {_storage(x) for x in problem.arguments}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if _storage(x) not in arguments:
            kept[_storage(x)] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = problem.forward()
    assert out.grad_fn is not None
    return sum(kept.values()) / seqlen


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def launches(call: Any) -> list[Launch]:
    """What `call` launches on the simulated device."""
    sim = simulator.start()
    sim.device.launches()  # forget those before
    call()
    return [Launch(name, counters) for name, counters in sim.device.launches()]


def only(found: list[Launch], kernel: str) -> Launch:
    """The launch of a kernel whose mangled name has this identifier."""
    matching = [launch for launch in found if f"{len(kernel)}{kernel}" in launch.kernel]
    if len(matching) != 1:
        names = ", ".join(launch.kernel for launch in found)
        raise SystemExit(f"{len(matching)} launches of {kernel}, expected one, among: {names}")
    return matching[0]


@cache
def tile(shape: Shape, kernel: str) -> tuple[int, int]:
    """Query rows and keys that are multiplied together, or not at all."""

    def flop(rows: int, keys: int) -> float:
        return _counter("mma_flop", shape, kernel, rows, keys)

    least = flop(1, 1)
    return (
        _first(kernel, lambda n: flop(n + 1, 1) > least),
        _first(kernel, lambda n: flop(1, n + 1) > least),
    )


@cache
def block_rows(shape: Shape) -> int:
    """Of a CTA of the forward: with the next row the keys are copied again."""
    row = 2 * 2 * shape.d  # bytes of Q

    def grows(n: int) -> bool:
        fewer, more = (_counter("async_bytes", shape, "fwd_kernel", m, 1) for m in (n, n + 1))
        return more - fewer > row

    return _first("fwd_kernel", grows)


@cache
def block_keys(shape: Shape) -> int:
    """Of a CTA of the backward: with the next key the rows are copied again."""
    key = 2 * (shape.k_components * shape.d + shape.dv)  # bytes of K and V

    def grows(n: int) -> bool:
        fewer, more = (_counter("async_bytes", shape, "bwd_kernel", 1, m) for m in (n, n + 1))
        return more - fewer > key

    return _first("bwd_kernel", grows)


def _counter(name: str, shape: Shape, kernel: str, rows: int, keys: int) -> float:
    return only(training(shape, rows, keys, False), kernel).counters[name]


def _first(kernel: str, more: Callable[[int], bool]) -> int:
    found = next((n for n in SIZES if more(n)), None)
    if found is None:
        raise SystemExit(f"{kernel} does no more for {SIZES[-1] + 1} rows or keys than for one")
    return found
