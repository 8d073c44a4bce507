"""Passkeys: rows of text that declare keys, and ask for them."""

from __future__ import annotations

import re
import string

import pytest
import torch
from support.refusal import refuses

from diffattn_cuda import duo

HAYSTACK = ("".join(f"line {i} of a quiet text\n" for i in range(200))).encode()
LINE = re.compile(rb"\nthe key of (.) is (\w{8})\n")


def rows_of(n: int, length: int, seed: int = 0, **options: object) -> duo.Passkeys:
    generator = torch.Generator().manual_seed(seed)
    return duo.Passkeys(HAYSTACK, n, length, generator, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("n, length", [(1, 52), (1, 300), (3, 400), (4, 1000)])
def test_rows(n: int, length: int) -> None:
    tokens, labels, source = rows_of(n, length).batch(5)
    assert tokens.shape == labels.shape == source.shape == (5, length)
    assert (tokens.dtype, labels.dtype, source.dtype) == (torch.int64, torch.bool, torch.int64)
    for row, label, said in zip(tokens, labels, source, strict=True):
        text = bytes(row.tolist())
        lines = LINE.findall(text)
        declared, asked = lines[:n], lines[n:]
        assert len(lines) == 2 * n and sorted(declared) == sorted(asked)
        used = b"".join(name + key for name, key in declared)
        assert len(set(used)) == 9 * n and set(used) <= set(
            (string.ascii_uppercase + string.digits).encode()
        )
        assert LINE.sub(b"", text) in HAYSTACK
        assert torch.equal(said >= 0, label)
        assert bytes(row[label].tolist()) == b"".join(key for _, key in asked)
        assert torch.equal(row[said[label]], row[label])
        assert (said[label] < length - 26 * n).all(), "found in the questions, not the haystack"


def test_margin() -> None:
    """No declaration in the first 30 bytes, nor in the last 100 in front of the questions."""
    places = rows_of(2, 300, margin=(30, 100)).batch(300)[2]
    declared = places[places >= 0].view(-1, 8)
    assert declared.min() - 17 >= 30 and declared.min() - 17 < 34  # and it reaches both ends
    behind = 300 - 2 * 26 - 100 - 1
    assert behind - 4 < declared.max() + 1 <= behind


def test_questions_come_in_any_order_and_depth() -> None:
    source = rows_of(2, 400).batch(300)[2]
    first = source.clamp(min=0).gather(1, (source >= 0).int().argmax(1, keepdim=True))[:, 0]
    last = source.max(1).values
    assert 0.3 < (last > first + 8).float().mean() < 0.7
    assert (first.float().std() > 50).item()


def test_the_generator_decides() -> None:
    one, same, other = (rows_of(2, 200, seed).batch(3)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    state = torch.get_rng_state()
    rows_of(2, 200).batch(1)
    assert torch.equal(state, torch.get_rng_state())
    assert duo.Passkeys(HAYSTACK, 1, 60).batch(0)[0].shape == (0, 60)


def test_a_haystack_that_just_suffices() -> None:
    """Each row is all of it."""
    for row in duo.Passkeys(HAYSTACK[:48], 1, 100).batch(20)[0]:
        assert LINE.sub(b"", bytes(row.tolist())) == HAYSTACK[:48]


def test_other_numbers_of_symbols() -> None:
    tokens, labels, _ = rows_of(9, 700, symbols=3).batch(1)
    assert labels.sum() == 27 and len(set(tokens[labels].tolist())) == 27


def test_wrong_passkeys() -> None:
    with refuses("haystack is str", "bytes"):
        duo.Passkeys("text", 1, 100)  # type: ignore[arg-type]
    with refuses("haystack has 4 bytes", "at least 48"):
        duo.Passkeys(b"text", 1, 100)
    for n, symbols in ((0, 8), (5, 8), (1, 0), (1, 36)):
        with refuses(f"n is {n} with symbols = {symbols}", "36"):
            rows_of(n, 1000, symbols=symbols)
    with refuses("n is 1.5", "integer"):
        rows_of(1.5, 100)  # type: ignore[arg-type]
    with refuses("length is 51", "at least 52"):
        rows_of(1, 51)
    with refuses("length is 100", "at least 132", "margin = (16, 64)"):
        rows_of(1, 100, margin=(16, 64))
    with refuses("margin is (-1, 0)", ">= 0"):
        rows_of(1, 100, margin=(-1, 0))
