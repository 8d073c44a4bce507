"""Passkeys in text, on which gates are trained (DuoAttention, arXiv 2410.10819); also in `duo`."""

from __future__ import annotations

import string

import torch
from torch import Tensor

from . import module_arguments

SYMBOLS = (string.ascii_uppercase + string.digits).encode()  # of names and keys


class Passkeys:
    """Rows of text in which keys are declared, and at whose end they are asked for.

    A row is a contiguous piece of the haystack with n lines `the key of X is ABCDEFGH` at random
    places, then the same n lines in another order. Within a row no symbol stands for two things:
    its names and keys are one permutation of A–Z and 0–9.

    Args:
        haystack: text, longer than length.
        n: keys per row; n·(symbols + 1) ≤ 36.
        length: bytes per row, its questions and answers included.
        generator: of the random numbers, on the CPU; None: torch's own.
        symbols: per key.
        margin: bytes of haystack in front of the first declaration and behind the last one, such as
            (sink, recent), so that a streaming head sees none of the declarations.

    Raises:
        ValueError: a number that does not fit the others.
        TypeError: haystack is not bytes, or a number no integer.

    Examples:
        >>> rows = Passkeys(b"It was a dark and stormy night. " * 9, n=1, length=90)
        >>> tokens, labels, source = rows.batch(2)
        >>> tokens.shape, labels.sum(1)
        (torch.Size([2, 90]), tensor([8, 8]))
        >>> torch.equal(tokens[labels], tokens.gather(1, source.clamp(min=0))[labels])
        True
    """

    def __init__(
        self,
        haystack: bytes,
        n: int,
        length: int,
        generator: torch.Generator | None = None,
        *,
        symbols: int = 8,
        margin: tuple[int, int] = (0, 0),
    ) -> None:
        if not isinstance(haystack, bytes):
            raise TypeError(f"haystack is {type(haystack).__name__}, accepted: bytes")
        self.n, self.length, self.symbols = module_arguments.integers(
            n=n, length=length, symbols=symbols
        )
        if self.n < 1 or self.symbols < 1 or self.n * (self.symbols + 1) > len(SYMBOLS):
            raise ValueError(
                f"n is {n} with symbols = {symbols}, accepted: n·(symbols + 1) from 2 to "
                f"{len(SYMBOLS)}, because a row has no symbol twice"
            )
        first, last = module_arguments.integers(**{"margin[0]": margin[0], "margin[1]": margin[1]})
        if first < 0 or last < 0:
            raise ValueError(f"margin is {margin}, accepted: two numbers of bytes >= 0")
        self.text = self.length - 2 * self.n * len(self._line(b"X", b"A" * self.symbols))
        if self.text < first + last:
            shortest = self.length - self.text + first + last
            raise ValueError(
                f"length is {length}, accepted: at least {shortest} for {n} keys and their "
                f"questions with margin = {margin}"
            )
        if len(haystack) < max(self.text, 1):
            raise ValueError(f"haystack has {len(haystack)} bytes, accepted: at least {self.text}")
        self.haystack, self.generator, self.margin = haystack, generator, (first, last)

    def batch(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """New rows, as many as asked for.

        Returns:
            tokens, int64 (rows, length): bytes. labels, bool (rows, length): True where a token is
            part of an answer. source, int64 (rows, length): of a token of an answer, where in the
            row it was declared; else −1.
        """
        tokens = torch.empty(rows, self.length, dtype=torch.int64)
        source = torch.full((rows, self.length), -1)
        for row in range(rows):
            text, places = self._row()
            tokens[row] = torch.frombuffer(text, dtype=torch.uint8)
            for asked, declared in places:
                source[row, asked : asked + self.symbols] = declared + torch.arange(self.symbols)
        return tokens, source >= 0, source

    def _row(self) -> tuple[bytearray, list[tuple[int, int]]]:
        """A row, and where each key is asked for and declared."""
        order = torch.randperm(len(SYMBOLS), generator=self.generator).tolist()
        symbols = bytes(SYMBOLS[i] for i in order)
        keys = [symbols[self.n + i * self.symbols :][: self.symbols] for i in range(self.n)]
        lines = [self._line(symbols[i : i + 1], key) for i, key in enumerate(keys)]
        start = self._random(len(self.haystack) - self.text + 1)
        first, last = self.margin
        cuts = sorted(first + self._random(self.text - first - last + 1) for _ in lines)
        row, declared = bytearray(), []
        for line, begin, cut in zip(lines, [0, *cuts], cuts, strict=False):
            row += self.haystack[start + begin : start + cut] + line
            declared.append(len(row) - 1 - self.symbols)
        row += self.haystack[start + cuts[-1] : start + self.text]
        places = []
        for i in torch.randperm(self.n, generator=self.generator).tolist():
            row += lines[i]
            places.append((len(row) - 1 - self.symbols, declared[i]))
        return row, places

    def _line(self, name: bytes, key: bytes) -> bytes:
        return b"\nthe key of " + name + b" is " + key + b"\n"

    def _random(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))
