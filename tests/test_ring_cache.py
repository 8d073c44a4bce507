"""nn.StreamingKVCache: what a module with rings attends to, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffattn_cuda.caches import StreamingKVCache
from diffattn_cuda.nn import KVCache, MultiheadDiffAttn, MultiheadDiffAttnV2, rotary_tables

F64 = torch.float64
EMBED, HEADS = 128, 4
SINK, RECENT = 5, 24
MIXES = [None, [True, False, True, False], [False, False, False, True], [False] * 4]
MIX = pytest.mark.parametrize("streaming", MIXES, ids=["all", "half", "one", "none"])
VERSION = pytest.mark.parametrize("version", [1, 2])


def make(version: int, **options: Any) -> Any:
    torch.manual_seed(0)
    if version == 1:
        return MultiheadDiffAttn(EMBED, 3, HEADS, dtype=F64, **options)
    return MultiheadDiffAttnV2(EMBED, HEADS, dtype=F64, **options)


def rings(module: Any, streaming: Any = None, capacity: int = 200, **options: Any) -> Any:
    options = {"sink": SINK, "recent": RECENT} | options
    return module.make_cache(2, capacity, streaming_heads=streaming, **options)


@torch.no_grad()
def steps(module: Any, x: Tensor, cache: Any, chunks: list[int]) -> Tensor:
    tables = rotary_tables(200, 16, dtype=F64)
    return torch.cat([module(part, tables, cache) for part in x.split(chunks, 1)], 1)


@torch.no_grad()
def without_cache(version: int, x: Tensor, streaming: Any) -> Tensor:
    mask = {"window_size": (RECENT - 1, 0), "sink_size": SINK, "streaming_heads": streaming}
    out: Tensor = make(version, **mask)(x, rotary_tables(x.shape[1], 16, dtype=F64))
    return out


@VERSION
@MIX
@pytest.mark.parametrize("implementation", ["fused", "eager"])
@pytest.mark.parametrize("chunks", [[100], [1] * 100, [7] * 14 + [2], [60, 1, 1, 38]], ids=str)
def test_equals_the_module_without_a_cache(
    version: int, streaming: Any, implementation: str, chunks: list[int]
) -> None:
    """A module that sees everything, with a cache that streams: the mask is the cache's."""
    x = torch.randn(2, 100, EMBED, dtype=F64)
    module = make(version, implementation=implementation)
    cache = rings(module, streaming)
    out = steps(module, x, cache, chunks)
    torch.testing.assert_close(out, without_cache(version, x, streaming), rtol=1e-9, atol=1e-11)
    assert cache.seqlens.tolist() == [100, 100]


@VERSION
def test_bytes_do_not_grow(version: int) -> None:
    """Of streaming heads: without a full head a sequence may be of any length."""
    module = make(version)
    sizes = [rings(module, [True, False, True, False], n).nbytes for n in (1000, 2000, 3000)]
    per_token = 2 * 2 * 8 * (module.head_dim * module.key_components + module.value_dim)
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == 1000 * per_token
    caches = [rings(module, None, n) for n in (0, 10, 10**6)]
    assert len({cache.nbytes for cache in caches}) == 1
    assert caches[0].nbytes == 2 * per_token * (16 + 32)
    x = torch.randn(2, 100, EMBED, dtype=F64)
    steps(module, x, caches[0], [50, 50])
    assert caches[0].seqlens.tolist() == [100, 100]


@VERSION
@MIX
def test_rewind(version: int, streaming: Any) -> None:
    """Guesses are taken back, each sequence its own; what follows is as if they had not been."""
    x = torch.randn(2, 100, EMBED, dtype=F64)
    module = make(version)
    want = steps(module, x, rings(module, streaming), [100])
    cache, guess = rings(module, streaming, max_new=9), torch.randn(2, 8, EMBED, dtype=F64)
    outs, at = [], 0
    for count in (70, 1, 9, 5, 15):
        with torch.no_grad():
            module(guess, rotary_tables(200, 16, dtype=F64), cache)
        cache.rewind(3)
        cache.rewind([5, 5])
        tables = rotary_tables(200, 16, dtype=F64)
        with torch.no_grad():
            outs.append(module(x[:, at : at + count], tables, cache))
        at += count
    torch.testing.assert_close(torch.cat(outs, 1), want, rtol=1e-9, atol=1e-11)


def test_sequences_rewind_apart() -> None:
    """A sequence that keeps one guess more than the other."""
    module, x = make(1), torch.randn(2, 61, EMBED, dtype=F64)
    cache = rings(module, None, max_new=4)
    steps(module, x[:, :60], cache, [60])
    cache.rewind(torch.tensor([0, 4]))
    assert cache.seqlens.tolist() == [60, 56]
    tables = rotary_tables(200, 16, dtype=F64)
    with torch.no_grad():
        out = module(x[:, 60:], tables, cache)
    first = steps(module, x[:1], one := module.make_cache(1, 0, sink=SINK, recent=RECENT), [61])
    torch.testing.assert_close(out[:1], first[:, -1:], rtol=1e-9, atol=1e-11)
    assert one.seqlens.tolist() == [61]
    other = torch.cat([x[1:, :56], x[1:, 60:]], 1)
    one.reset()
    second = steps(module, other, one, [57])
    torch.testing.assert_close(out[1:], second[:, -1:], rtol=1e-9, atol=1e-11)


def test_a_rewind_beyond_the_slack() -> None:
    """Of 16 + 32 slots the window takes 23 before the next token: 9 are left for guesses."""
    module = make(1)
    cache = rings(module, None, max_new=9)
    steps(module, torch.randn(2, 100, EMBED, dtype=F64), cache, [100])
    for n in (10, -1, 101, [0, 10]):
        with pytest.raises(ValueError, match=r"n is .* accepted: 0 to 9, .*max_new is 9"):
            cache.rewind(n)
        assert cache.seqlens.tolist() == [100, 100]
    cache.rewind(4)
    cache.rewind([5, 0])
    with pytest.raises(ValueError, match=r"n is 1 for sequence 0 of 91 tokens, accepted: 0 to 0"):
        cache.rewind([1, 0])
    assert cache.seqlens.tolist() == [91, 96]
    steps(module, torch.randn(2, 3, EMBED, dtype=F64), cache, [3])
    cache.rewind([3, 8])  # to where they were, and to the limit
    with pytest.raises(ValueError, match="sequence 1 of 91 tokens, accepted: 0 to 0"):
        cache.rewind([0, 1])
    cache.rewind([91 - 16, 91 - 16])  # where sinks have all keys
    cache.rewind(16)
    assert cache.seqlens.tolist() == [0, 0]


def test_nothing_is_lost_before_the_wrap() -> None:
    module = make(1)
    cache = rings(module, None)
    x = torch.randn(2, 48, EMBED, dtype=F64)
    want = steps(module, x, cache, [48])
    cache.rewind(40)
    again = steps_from(module, x, cache, 8)
    torch.testing.assert_close(again, want[:, 8:], rtol=1e-9, atol=1e-11)
    # All keys behind the sinks were written anew, so as many can be taken back again.
    cache.rewind(40)
    cache.rewind(8)


@torch.no_grad()
def steps_from(module: Any, x: Tensor, cache: Any, first: int) -> Tensor:
    out: Tensor = module(x[:, first:], rotary_tables(x.shape[1], 16, dtype=F64), cache)
    return out


def test_reset() -> None:
    module, x = make(2), torch.randn(2, 90, EMBED, dtype=F64)
    cache = rings(module, [True, True, False, False])
    want = steps(module, x, cache, [90])
    cache.reset()
    torch.testing.assert_close(steps(module, x, cache, [30, 60]), want, rtol=1e-9, atol=1e-11)


def test_the_modules_own_mask() -> None:
    """A module that streams makes the cache of its mask, and takes no other."""
    mask = {"window_size": (23, 0), "sink_size": 5, "streaming_heads": [True, False, True, True]}
    module, x = make(1, **mask), torch.randn(2, 90, EMBED, dtype=F64)
    cache = module.make_cache(2, 100, max_new=4)
    assert isinstance(cache, StreamingKVCache)
    assert (cache.sink, cache.recent, cache.max_new) == (5, 24, 4)
    tables = rotary_tables(90, 16, dtype=F64)
    with torch.no_grad():
        want = module(x, tables)
    torch.testing.assert_close(steps(module, x, cache, [40, 50]), want, rtol=1e-9, atol=1e-11)
    assert isinstance(module.make_cache(2, 100), KVCache)
    for name, options in (
        ("recent", {"recent": 25}),
        ("sink", {"sink": 6}),
        ("streaming_heads", {"streaming_heads": [True] * 4}),
    ):
        with torch.no_grad(), pytest.raises(ValueError, match=f"cache.{name} is .*module's mask"):
            module(x, tables, module.make_cache(2, 100, **options))


@VERSION
def test_compiled(version: int) -> None:
    """One graph serves the steps of a sequence, and nothing in it depends on the length."""
    module, x = make(version), torch.randn(2, 60, EMBED, dtype=F64)
    tables = rotary_tables(60, 16, dtype=F64)
    one, other = (rings(module, [True, False, True, False]) for _ in range(2))
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    step = torch.compile(lambda x, cache: module(x, tables, cache), fullgraph=True, backend=backend)
    with torch.no_grad():
        for t in range(55, 60):
            row = x[:, t : t + 1]
            torch.testing.assert_close(step(row, one), module(row, tables, other), rtol=0, atol=0)
    assert len(graphs) == 1 and one.seqlens.tolist() == [5, 5]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sink": 4}, "recent is None, .* no window"),
        ({"recent": 0}, "recent is 0, accepted: an integer >= 1"),
        ({"recent": 4, "sink": -1}, "sink is -1, accepted: an integer >= 0"),
        ({"recent": 4, "max_new": 0}, "max_new is 0, accepted: an integer >= 1"),
        ({"recent": 4, "streaming_heads": [True]}, "streaming_heads has 1 entries"),
        ({"recent": 4.0}, "recent is 4.0 .float., accepted: an integer"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(1).make_cache(2, 100, **options)


@pytest.mark.parametrize("name", ["full_k", "full_v", "ring_k", "ring_v"])
def test_caches_are_checked_before_x_is_projected(name: str) -> None:
    module, cache = make(1), rings(make(1), [True, False, True, False])
    x = torch.zeros(2, 1, EMBED, dtype=F64).expand(2, 2**42, EMBED)
    for change in (lambda t: t[..., :8], lambda t: t[:1], lambda t: t[:, :, :1]):
        whole = getattr(cache, name)
        setattr(cache, name, change(whole))
        with torch.no_grad(), pytest.raises(ValueError, match=r"cache\.\w+_[kv] has"):
            module(x, cache=cache)
        setattr(cache, name, whole)
    other = MultiheadDiffAttn(EMBED, 3, 2, dtype=F64)
    with torch.no_grad(), pytest.raises(ValueError, match="streaming_heads has 4 entries.* 2 KV"):
        other(x, cache=cache)


def test_the_number_of_tokens_to_take_back() -> None:
    cache = rings(make(1))
    for n in (1.0, "1", [1], [1, 2, 3], torch.ones(3, dtype=torch.int32), True):
        with pytest.raises((TypeError, ValueError), match="^n(\\[0\\])? (is|has)"):
            cache.rewind(n)
