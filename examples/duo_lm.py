"""Find the heads that retrieve, let the others stream, and see what is lost (arXiv 2410.10819).

    python examples/duo_lm.py --out duo_out

A small DIFF Transformer learns passkeys in Python sources from nothing. Then it is frozen, and a
gate per KV head learns which heads need the whole context. 200 unseen prompts, whose keys lie
outside every stack of windows, show what the choice is worth: the same mask in prefill and
decoding. Two to five minutes on two CPU cores; no weights are kept.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

# Idle OpenMP threads sleep: spinning, they cost a busy machine most of its speed. Read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diff_lm import DiffLM
from duo_plots import plot_cache, plot_gates
from passkey_lm import texts, train
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm  # type: ignore[import-untyped]

from diffattn_cuda import duo
from diffattn_cuda.nn import StreamingKVCache

SINK, RECENT = 16, 64
KEYS, SYMBOLS = 3, 8  # in a prompt; of a key
WIDTH, HEADS = 128, 4  # d = 16, and as many KV heads
LENGTHS = [2**i * 1024 for i in range(7)]  # of the caches that are timed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("duo_out"), help="plots and gates")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--gate-steps", type=int, default=60)
    parser.add_argument("--mode", choices=["self", "teacher"], default="self", help="of the gates")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--length", type=int, default=512, help="bytes of a prompt")
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds")
    args = parser.parse_args()
    if args.tiny:
        args.steps, args.gate_steps, args.prompts, args.length, args.depth = 12, 4, 4, 320, 2
    return args


def train_gates(model: DiffLM, text: bytes, args: argparse.Namespace) -> Tensor:
    """α of each layer and head, (depth, HEADS), with the model frozen."""
    generator = torch.Generator().manual_seed(args.seed)
    prompts = duo.Passkeys(text, KEYS, 320, generator, margin=(SINK, RECENT))
    gates = duo.HeadGates(model, SINK, RECENT, args.mode)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    for _ in (bar := tqdm(range(args.gate_steps), desc="gates", unit="step")):
        tokens, labels, _ = prompts.batch(4)
        with gates.full():
            full = model(tokens)[:, :-1]
        loss = duo.distillation_loss(full, model(tokens)[:, :-1], labels[:, 1:], "kl")
        (loss + 0.05 * duo.penalty(gates.alpha)).backward()
        optimizer.step()
        optimizer.zero_grad()
        gates.clamp_()
        bar.set_postfix(kl=f"{loss.item():.4f}", open=f"{gates.alpha.sum().item():.1f}")
    gates.remove()
    return gates.alpha.detach()


def patterns(alpha: Tensor, scores: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Names and choices of heads; a random one has as many as the learned one above it."""
    generator = torch.Generator().manual_seed(seed)
    yield "full", torch.ones_like(alpha, dtype=torch.bool)
    for name, keep in (("1/2", 0.5), ("1/4", 0.25)):
        learned = duo.select_heads(alpha, keep)
        yield f"learned {name}", learned
        yield f"its complement, {name}", ~learned
        yield f"by attention, {name}", duo.select_heads(scores, keep)
        for i in range(5):
            yield (
                f"random {name}, {i + 1}",
                duo.select_heads(torch.rand(alpha.shape, generator=generator), keep),
            )
    yield "all streaming", torch.zeros_like(alpha, dtype=torch.bool)


def make_caches(model: DiffLM, batch: int, capacity: int) -> list[StreamingKVCache]:
    """A ring for each head that streams, of its sinks and window; the rest keeps the context."""
    return [layer.make_cache(batch, capacity, max_new=1) for layer in model.attention_layers()]


def exact_matches(model: DiffLM, tokens: Tensor) -> float:
    """Share of prompts whose last question is answered: a prefill, then a step per symbol."""
    right = []
    for rows in tokens.split(50):
        prompt, answer = rows[:, : -SYMBOLS - 1], rows[:, -SYMBOLS - 1 : -1]
        caches = make_caches(model, len(rows), tokens.shape[1])
        written = model.generate(prompt, SYMBOLS, caches=caches)[:, -SYMBOLS:]
        right.append((written == answer).all(1))
    return torch.cat(right).float().mean().item()


@torch.no_grad()
def text_loss(model: DiffLM, rows: Tensor) -> float:
    """Nats per byte."""
    return sum(model.loss(part).item() * len(part) for part in rows.split(8)) / len(rows)


def report(
    model: DiffLM, unseen: bytes, alpha: Tensor, args: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """(exact match, nats per byte) of every choice of heads."""
    generator = torch.Generator().manual_seed(args.seed + 1)
    margin = (SINK, RECENT * args.depth)  # further than windows of all layers reach together
    prompts = duo.Passkeys(unseen, KEYS, args.length, generator, margin=margin)
    tokens, labels, _ = prompts.batch(args.prompts)
    starts = torch.randint(len(unseen) - args.length, (max(2, args.prompts // 8),),
                           generator=generator)  # fmt: skip
    rows = torch.stack([torch.tensor(list(unseen[i : i + args.length])) for i in starts.tolist()])
    asks = F.pad(labels[:16, 1:], (0, 1))  # the rows that predict an answer
    scores = duo.attention_scores(model, tokens[:16], SINK, RECENT, asks)
    results = {}
    for name, pattern in tqdm(list(patterns(alpha, scores, args.seed)), desc="report"):
        duo.set_streaming_heads(model, pattern, SINK, RECENT)
        results[name] = exact_matches(model, tokens), text_loss(model, rows)
    return results


def print_report(results: dict[str, tuple[float, float]]) -> None:
    """As a table in markdown, random choices in a line."""
    full_match, full_loss = results["full"]
    print("\n| heads that keep the whole context | passkeys | of full's | nats per byte |")
    print("|---|---:|---:|---:|")
    for name, (match, loss) in results.items():
        if name.startswith("random"):
            kind, number = name.split(", ")
            drawn = [results[f"{kind}, {i}"] for i in range(1, 6)]
            if number == "1":
                match, loss = (sum(column) / 5 for column in zip(*drawn, strict=True))
                name = f"{kind}: {', '.join(f'{m:.3f}' for m, _ in drawn)}; mean"
            else:
                continue
        share = match / full_match if full_match else float("nan")
        print(f"| {name} | {match:.3f} | {share:.2f} | {loss:.3f} ({loss - full_loss:+.3f}) |")


@torch.inference_mode()
def decoding(
    model: DiffLM, choices: dict[str, Tensor], lengths: list[int]
) -> tuple[dict[str, list[int]], dict[str, list[float]]]:
    """By context length, the caches' bytes, and milliseconds of one thread's CPU time per token:
    the least of five. Other processes on the machine do not count."""
    long = DiffLM(WIDTH, len(model.blocks), HEADS, HEADS, lengths[-1] + 1)
    long.load_state_dict(model.state_dict())
    token = torch.zeros(1, 1, dtype=torch.int64)
    sizes: dict[str, list[int]] = {name: [] for name in choices}
    times: dict[str, list[float]] = {name: [] for name in choices}
    for name, pattern in tqdm(choices.items(), desc="decode"):
        duo.set_streaming_heads(long, pattern, SINK, RECENT)
        for length in lengths:
            caches = make_caches(long, 1, length + 1)
            sizes[name].append(sum(cache.nbytes for cache in caches))
            for cache in caches:
                for kept in (cache.full_k, cache.full_v, cache.ring_k, cache.ring_v):
                    kept.normal_()
            measured = []
            for _ in range(6):
                for cache in caches:
                    cache.seqlens.fill_(length)
                start = time.thread_time()
                long(token, caches)
                measured.append(time.thread_time() - start)
            times[name].append(min(measured[1:]) * 1e3)
    return sizes, times


def main() -> None:
    args = parse_arguments()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at 1,024 tokens per step a second one does not pay
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    text, unseen = texts(args.tiny)
    model = DiffLM(WIDTH, args.depth, HEADS, HEADS, 1024)
    print(f"seed {args.seed}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")

    clock = time.perf_counter(), time.process_time()
    losses = train(model, text, args.steps, args.seed)
    model.requires_grad_(False)
    answers, rest = (sum(column[-50:]) / 50 for column in zip(*losses, strict=True))
    print(f"trained: answers {answers:.3f}, text {rest:.3f} nats per byte, the last 50 steps")
    alpha = train_gates(model, text, args)
    print(f"gates by layer and head:\n{alpha}")
    duo.save_pattern(args.out, alpha, SINK, RECENT, seed=args.seed)
    torch.set_num_threads(threads)

    results = report(model, unseen, alpha, args)
    print_report(results)
    choices = {"full": torch.ones_like(alpha, dtype=torch.bool),
               "learned 1/2": duo.select_heads(alpha, 0.5),
               "learned 1/4": duo.select_heads(alpha, 0.25),
               "all streaming": torch.zeros_like(alpha, dtype=torch.bool)}  # fmt: skip
    lengths = LENGTHS[:2] if args.tiny else LENGTHS
    torch.set_num_threads(1)
    sizes, times = decoding(model, choices, lengths)
    plot_gates(alpha, args.out / "duo_gates.svg")
    plot_cache(lengths, sizes, times, args.out / "duo_cache.svg")
    wall, cpu = time.perf_counter() - clock[0], time.process_time() - clock[1]
    print(
        f"\n{args.out}: duo_gates.svg, duo_cache.svg, the gates; {wall:.0f} s, {cpu:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
