"""What has to notice a weakened kernel of decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_kvcache_device as device
import torch
from support.cache import make_cache
from support.case import Case
from support.checks import check_answer
from support.impls import Impl
from test_components_cache import test_a_cache
from test_huge_scores import (
    test_decoding_over_scores_that_come_and_go,
    test_decoding_weighs_equal_scores_alike,
    test_rows_turn_far_between_neighbours,
)
from test_kvcache import check_step
from test_page_sizes import test_a_step
from torch import Tensor

from .target import MakeTarget, Target, identifier, kernel, spread

BF16 = torch.bfloat16


def in_wide_rows(impl: Impl) -> Impl:
    """Head dims are narrower than the tiles; what lies between rows is not to be touched."""

    def kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, lam: Any, **options: Any) -> Any:
        new = {name: spread(options[name]) for name in ("k", "v") if name in options}
        caches = spread(k_cache), spread(v_cache)
        result = impl.kvcache(spread(q), *caches, lam, **options | new)
        k_cache.copy_(caches[0])
        v_cache.copy_(caches[1])
        return result

    return replace(impl, kvcache=kvcache)


def check_long(impl: Impl, group: int) -> None:
    """Rings that wrap around, padded widths, every mask, many splits."""
    base = Case(sq=2, d=64, dv=128, heads=2 * group, heads_k=2, dtype=BF16, lam="token")
    sharp = base.but(scale=-0.2, regime="sharp")
    wide = base.but(d=128, dv=256, causal=True, norm="affine", out_scale=0.2)
    alone = base.but(heads=2, sq=5 if group < 5 else 12, causal=True)  # each query head its KV head
    runs: list[tuple[Case, str, list[int], list[int] | None, int, int]] = [
        (base.but(causal=True, norm="affine"), "paged16", [700, 1000], [13, 30], 2, 1),
        (base.but(d=40, dv=80, window=(500, 0), norm="plain"), "indexed", [1000, 37], None, 2, 3),
        (sharp.but(d=56, dv=112, norm="affine"), "paged64", [0, 900], None, 5, 40),
        (sharp.but(d=40, dv=80, norm="affine"), "plain", [17, 300], None, 3, 1),
        (base.but(shared_k=True, window=(-1, 3), sq=3), "heads_first", [640, 5], None, 0, 2),
        (wide, "paged256", [700, 900], None, 1, 7),
        (base.but(scale=30.0, norm="plain"), "paged16", [1000, 0], None, 0, 50),  # LSE far apart
        (base.but(sq=70, causal=True), "paged16", [0, 100], None, 70, 1),
        (base.but(shared_k=True, dv=64, norm="affine"), "plain", [300, 40], None, 0, 3),
        (alone, "plain", [0, 500], None, 0, 3),
        (alone.but(heads=1, heads_k=1), "plain", [90, 300], None, 0, 3),
        (alone.but(sq=1 if group < 5 else 9), "paged16", [300, 0], None, 0, 20),
        (alone.but(window=(100, 0)), "paged64", [300, 200], None, 0, 1),
    ]
    for case, kind, lengths, leftpads, new, num_splits in runs:
        cache = make_cache(case.but(batch=2), impl, kind, lengths, leftpads, capacity=1024)
        narrow = impl if case.d >= 64 else in_wide_rows(impl)
        check_step(narrow, cache, new, num_splits=num_splits)
    full = make_cache(base.but(batch=2, d=40, dv=80), impl, "plain", [190, 190], capacity=192)
    check_step(impl, full, 2)  # to the last byte
    full.arguments["cache_seqlens"].fill_(192)
    lengths_given = device.call(impl, full)
    del full.arguments["cache_seqlens"]
    assert device.same_bits(device.call(impl, full), lengths_given)


def check_neighbours(impl: Impl, group: int) -> None:
    """A row whose logits outgrow all references leaves the others as they are, to the bit."""
    case = Case(batch=1, sq=4 if group < 5 else 9, d=64, dv=128, heads=group, heads_k=1, dtype=BF16)
    cache = make_cache(case, impl, "plain", [200])
    steep = replace(cache, problem=cache.problem.but(q=cache.problem.q.clone()))
    steep.problem.q[:, 1] *= 30
    others = torch.arange(case.sq) != 1
    outs = [device.call(impl, x)[0][:, others] for x in (cache, steep)]
    assert torch.equal(*outs)


def check_huge(impl: Impl, group: int) -> None:
    """Rows that become far, stay far, and become ordinary again; splits whose LSE is coarse."""
    few = group < 5
    for course in ((-1, 0, 1), (-1, -0.5, -1)):
        test_decoding_over_scores_that_come_and_go(impl, 4 if few else 9, course, 4)
    for x in (300.0, 1e5):
        test_decoding_weighs_equal_scores_alike(impl, BF16, x, 1 if few else 9, 2)
    for sign in (1, -1):
        test_rows_turn_far_between_neighbours(impl, BF16, sign, (-12, 0, 2), True)


def check_lost_pages(impl: Impl, group: int) -> None:
    """Pages that do not exist where rings have wrapped around: the others are found."""
    case = Case(batch=2, sq=2, d=64, dv=128, heads=2 * group, heads_k=2, dtype=BF16)
    for page, new in ((-1, 0), (10**6, 0), (-1, 70), (10**6, 70)):
        cache = make_cache(case, impl, "paged16", [900, 500], capacity=1024)
        lost = [[3, 20, 21, 37, 50, 58], [0, 18, 27, 31, 32, 35]]
        for i, pages in enumerate(lost):
            cache.arguments["block_table"][i, pages] = page
        out, lse = device.call(impl, cache, new)
        for i, pages in enumerate(lost):
            keys = [16 * n + j for n in pages for j in range(16)]
            seen = device.without(cache.visible(i, new), keys)
            check_answer(out[i : i + 1], lse[:, i : i + 1], seen)


def reshaped(group: int) -> Callable[..., Case]:
    """Adapts the cases of the device's tests to the kernel that is mutated."""

    def case(**fields: Any) -> Case:
        made = Case(**fields)
        few_rows = min(made.sq, 8 // group) if group < 5 else max(made.sq, 2)
        return made.but(d=64, dv=128, heads=group * made.heads_k, sq=few_rows)

    return case


def check_everything(impl: Impl, group: int) -> None:
    check_long(impl, group)
    check_lost_pages(impl, group)
    check_neighbours(impl, group)
    check_huge(impl, group)
    test_a_cache(impl, BF16, "paged16", 3, 5)
    for new in (1, 70):
        test_a_step(impl, BF16, 48, new, 3)
    device.Case = reshaped(group)  # type: ignore[misc, assignment]
    for interleaved in (True, False):
        for new in (5, 70):
            device.test_rotary_equals_rotating_before_to_the_bit(
                impl, BF16, interleaved, 48, new, True
            )
        device.test_positions_beyond_the_tables_use_their_last(impl, BF16, interleaved, 70)
        with pytest.MonkeyPatch.context() as patch:
            device.test_queries_alone_beyond_the_tables_use_their_last(
                impl, BF16, interleaved, patch
            )
    device.test_pages_that_do_not_exist_are_masked(impl, BF16, 10**6, 3)
    device.test_pages_that_do_not_exist_are_masked(impl, BF16, -1, 1)
    device.test_tokens_without_a_slot_are_dropped(impl, BF16, "paged16", 10)
    device.test_tokens_without_a_slot_are_dropped(impl, BF16, "indexed", 70)
    device.test_append_reaches_every_new_token(impl, BF16, (20, 0), 1)
    device.test_rows_that_do_not_exist_have_no_keys(impl, BF16, -1)
    device.test_lengths_are_clamped(impl, BF16, "paged64", True, 2)


def _target(name: str, part: str, group: int) -> MakeTarget:
    """Checked with so many query heads per KV head."""
    parts = name, f"bfloat16{part}"
    return lambda shape: Target(parts, lambda impl: check_everything(impl, group))


DECODE = kernel("decode_kernel", "DecodeTraits")
TARGETS: dict[str, MakeTarget] = {
    "decode few": _target(DECODE, "Li64ELi128ELi4ELi1ELb0E", 2),
    "decode many": _target(DECODE, "Li64ELi128ELi2ELi4ELb0E", 5),
    "combine": _target(identifier("combine_kernel"), "", 2),
}
