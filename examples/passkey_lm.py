"""Teach a small language model to find passkeys in Python sources, in under two minutes on a CPU.

What duo_lm.py and noise.py share: rows of growing length, their loss, and the loop. A model this
small learns to retrieve only if most of its first rows ask for it: at length 64, 70 % of them are a
permutation of symbols that is said twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm  # type: ignore[import-untyped]
from train_lm import standard_library

from diffattn_cuda.passkeys import SYMBOLS, Passkeys

# (share of the steps after which it ends, bytes per row). By steps, never by time, so that a slow
# machine learns the same. Rows of the first length are for most part copies.
Lengths = tuple[tuple[float, int], ...]
LENGTHS: Lengths = ((0.15, 64), (0.35, 128), (0.55, 256), (0.8, 512), (1.0, 768))
TOKENS = 1024  # per step
MOST_KEYS = 4
ANSWER, TEXT, SILENT = 2, 1, 0  # what a token is; no loss on a key's declaration, which is random


def texts(tiny: bool) -> tuple[bytes, bytes]:
    """Python's standard library: what models read, and what they have not seen."""
    text = standard_library(limit=20 if tiny else None).numpy().tobytes()
    return text[len(text) // 20 :], text[: len(text) // 20]


def training_rows(
    haystack: bytes, length: int, copies: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(tokens, kinds), each (rows, length): TOKENS of them, as near as whole rows come.

    copies: the share of copy rows.
    """
    rows = []
    for _ in range(max(1, TOKENS // length)):
        if copies and torch.rand((), generator=generator) < copies:
            rows.append(copy_row(haystack, length, generator))
            continue
        most = min(MOST_KEYS, length // 60)
        n = 1 + int(torch.randint(most, (), generator=generator))
        tokens, labels, source = Passkeys(haystack, n, length, generator).batch(1)
        kinds = torch.where(labels, ANSWER, TEXT)
        kinds[0, source[labels]] = SILENT
        rows.append((tokens[0], kinds[0]))
    return torch.stack([tokens for tokens, _ in rows]), torch.stack([kinds for _, kinds in rows])


def copy_row(haystack: bytes, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Text, then 16 to 32 symbols, at most 7 bytes of text, and the same symbols again."""

    def random(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    gap = random(0, 7)
    count = random(16, min(32, (length - gap) // 2))
    order = torch.randperm(len(SYMBOLS), generator=generator)[:count]
    symbols = torch.tensor(list(SYMBOLS))[order]  # (count,)
    start = random(0, len(haystack) - length)
    text = torch.tensor(list(haystack[start : start + length - 2 * count]), dtype=torch.int64)
    front = len(text) - gap
    tokens = torch.cat([text[:front], symbols, text[front:], symbols])
    kinds = torch.full((length,), TEXT)
    kinds[front : front + count] = SILENT
    kinds[-count:] = ANSWER
    kinds[-count] = SILENT  # which symbol begins it again is no secret, but when is
    return tokens, kinds


def row_loss(logits: Tensor, tokens: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropies, in nats, of answers and of text."""
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    kinds = kinds[:, 1:].flatten()
    return loss[kinds == ANSWER].mean(), loss[kinds == TEXT].mean()


def learning_rate(progress: float) -> float:
    """Fraction of the full rate: up over the first 3 %, then linear down to a tenth."""
    return min(progress / 0.03, 1.0) * (1.0 - 0.9 * progress)


def train(
    model: nn.Module,
    haystack: bytes,
    steps: int,
    seed: int,
    lr: float = 3e-3,
    lengths: Lengths = LENGTHS,
    name: str = "train",
) -> list[tuple[float, float]]:
    """The losses (answers, text) of each step, in nats per token."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0)
    losses = []
    bar = tqdm(range(steps), desc=name, unit="step", mininterval=1.0)
    for step in bar:
        progress = (step + 1) / steps
        length = next(length for end, length in lengths if progress <= end)
        copies = 0.7 if length == lengths[0][1] else 0.0
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(progress)
        tokens, kinds = training_rows(haystack, length, copies, generator)
        answers, text = row_loss(model(tokens), tokens, kinds)
        (answers + 0.3 * text).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((answers.item(), text.item()))
        bar.set_postfix(answers=f"{losses[-1][0]:.2f}", text=f"{losses[-1][1]:.2f}")
    return losses


@torch.no_grad()
def exact_match(model: nn.Module, tokens: Tensor, labels: Tensor, symbols: int = 8) -> Tensor:
    """(rows, keys) bool: whether greedy decoding gives all of a key's symbols.

    It does if each symbol is the likeliest one after the right ones before it.
    """
    right = model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]
    return right[labels[:, 1:]].view(len(tokens), -1, symbols).all(-1)
