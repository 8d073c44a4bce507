"""Numbers that change from call to call, or from layer to layer, under torch.compile.

Dynamo makes such a number dynamic the second time it sees it, and torch's AOTAutograd cache forgets
what the graph was specialised to: https://github.com/pytorch/pytorch/issues/197889. The cache is
written without gradients or after a backward, so either has to happen here, with caches on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.impls import Impl
from torch import Tensor, nn
from torch._dynamo.utils import counters

from diffattn_cuda.nn import MultiheadDiffAttn, MultiheadDiffAttnV2

pytestmark = [pytest.mark.needs(what) for what in ("has_ops", "traces")]
NUMBERS = (0.2, 0.35, 0.45, 0.55)


@pytest.fixture(autouse=True)
def _fresh_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    on = torch._functorch.config.patch(enable_autograd_cache=True)
    with torch.compiler.config.patch(force_disable_caches=False), on:
        yield


def close(got: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
    assert (got - expected).norm() <= tolerance * expected.norm()


def layers_of_v1(impl: Impl, **options: Any) -> list[nn.Module]:
    factory = {"device": impl.device, "dtype": impl.dtypes[-2]}
    return [MultiheadDiffAttn(64, depth, 2, **factory, **options) for depth in range(4)]


def layers_of_v2(impl: Impl) -> list[nn.Module]:
    factory = {"device": impl.device, "dtype": impl.dtypes[-2]}
    return [MultiheadDiffAttnV2(64, 2, **factory) for _ in range(3)]


def run(layer: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The output and all gradients."""
    layer.zero_grad()
    out = call(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]


KINDS: dict[str, Callable[[Impl], list[nn.Module]]] = {
    "v1": layers_of_v1,
    "v1 without weight": lambda impl: layers_of_v1(impl, norm_affine=False),
    "v2": layers_of_v2,
}


@pytest.mark.parametrize(
    "kind, training",
    [("v1", False), ("v1", True), ("v1 without weight", False), ("v2", False)],
)
def test_layers_compiled_one_by_one(impl: Impl, kind: str, training: bool) -> None:
    x = torch.randn(2, 9, 64, device=impl.device, dtype=impl.dtypes[-2])
    layers = KINDS[kind](impl)
    for cache in ("cold", "warm"):
        torch._dynamo.reset()
        counters.clear()
        for layer in layers:
            compiled = torch.compile(layer, fullgraph=True)
            with torch.set_grad_enabled(training):
                if training:
                    results = run(layer, compiled, x), run(layer, layer, x)
                else:
                    results = [compiled(x)], [layer(x)]
            for got, expected in zip(*results, strict=True):
                close(got, expected)
        # λ_init once as a constant, then as a number of the graph: no layer meets the limit of 8.
        assert counters["stats"]["unique_graphs"] <= 2
        hits = counters["aot_autograd"]["autograd_cache_hit"]
        assert hits == (0 if cache == "cold" else counters["stats"]["unique_graphs"])


def test_a_model_of_more_layers_than_the_recompile_limit(impl: Impl) -> None:
    limit = torch._dynamo.config.recompile_limit
    factory = {"device": impl.device, "dtype": impl.dtypes[-2]}
    x = torch.randn(1, 3, 64, device=impl.device, dtype=impl.dtypes[-2])
    with torch.no_grad():
        for depth in range(limit + 3):
            layer = MultiheadDiffAttn(64, depth, 2, **factory)
            close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


def test_decoding_layers_compiled_one_by_one(impl: Impl) -> None:
    x = torch.randn(2, 1, 64, device=impl.device, dtype=impl.dtypes[-2])
    with torch.no_grad():
        for layer in layers_of_v1(impl):
            cache = layer.make_cache(2, 16)
            twin = copy.deepcopy(cache)
            close(torch.compile(layer, fullgraph=True)(x, None, cache), layer(x, None, twin))
            assert torch.equal(cache.k, twin.k)


USES: dict[str, Callable[[Any, Tensor, Tensor, Tensor, float], Tensor]] = {
    "lam": lambda f, q, k, v, z: f(q * z, k, v, 1 - z),
    "softmax_scale": lambda f, q, k, v, z: f(q * z, k, v, 0.5, 1 - z),
    "norm_eps": lambda f, q, k, v, z: f(q * z, k, v, 0.5, norm_eps=1 - z),
    "out_scale": lambda f, q, k, v, z: f(q * z, k, v, 0.5, out_scale=1 - z),
    "out_scale, normed": lambda f, q, k, v, z: f(
        q * z, k, v, 0.5, norm_eps=1e-5, norm_weight=v[0, 0, 0], out_scale=1 - z
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(USES))
def test_numbers_of_a_user(impl: Impl, name: str) -> None:
    """1 − z is a number of the graph, as z is in q·z; each z has its own result."""
    q, k, v = (torch.randn(1, 9, n, d, device=impl.device).to(impl.dtypes[-2])
               for n, d in ((4, 16), (4, 16), (2, 32)))  # fmt: skip

    def use(z: float) -> Tensor:
        return USES[name](impl.func, q, k, v, z)

    compiled = torch.compile(use, fullgraph=True)
    with torch.no_grad():
        for z in NUMBERS:
            close(compiled(z), use(z))
    if name in ("lam", "out_scale, normed"):  # the others are constants of the kernel's call
        assert counters["stats"]["unique_graphs"] == 2
