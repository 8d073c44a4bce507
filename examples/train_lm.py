"""Train a small byte-level DIFF Transformer on Python's standard library, then let it write.

    python examples/train_lm.py --out demo_out

takes under four minutes on two CPU cores, and uses a GPU (bf16 autocast) when there is one.
"""

from __future__ import annotations

import argparse
import os
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Idle OpenMP threads sleep: spinning, they cost a busy machine most of its speed. Read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diff_lm import DiffLM
from plots import plot_attention, plot_loss
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

PROMPT = "def read_file(path):\n"
SNIPPET = (
    "def find(names, key):\n    for name in names:\n        if key in name:\n            return na"
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder of the plots")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=130, help="train no longer than this")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--new-tokens", type=int, default=400, help="bytes to generate")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a model and text that take seconds")
    args = parser.parse_args()
    if args.tiny:
        args.batch, args.seqlen, args.depth, args.new_tokens = 2, 64, 2, 20
    return args


def standard_library(limit: int | None = None) -> Tensor:
    """The sources next to this Python's os.py, without tests, as one uint8 tensor (total,)."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3"}
    files = [p for p in sorted(root.rglob("*.py")) if not skipped & set(p.relative_to(root).parts)]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))
    text = b"\n".join(files[i].read_bytes() for i in order[:limit])
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def sample(text: Tensor, batch: int, seqlen: int, device: str) -> Tensor:
    """(batch, seqlen + 1) bytes from random places of the text, as int64."""
    starts = torch.randint(len(text) - seqlen, (batch,))
    return text[starts[:, None] + torch.arange(seqlen + 1)].long().to(device)


def learning_rate(progress: float) -> float:
    """Fraction of the full rate: linear up over the first 5%, then linear down to a tenth."""
    return min(progress / 0.05, 1.0) * (1.0 - 0.9 * progress)


def train(model: DiffLM, text: Tensor, args: argparse.Namespace) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
    losses: list[float] = []
    start, progress = time.perf_counter(), 0.0
    bar = tqdm(range(args.steps), desc="train", unit="step", mininterval=1.0)
    for step in bar:
        if progress >= 1.0:
            break
        # On a slow machine the time runs out first: the schedule follows the one that is further.
        elapsed = time.perf_counter() - start
        progress = max((step + 1) / args.steps, elapsed / args.seconds)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate(min(progress, 1.0))
        losses.append(training_step(model, sample(text, args.batch, args.seqlen, args.device)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def training_step(model: DiffLM, tokens: Tensor) -> float:
    """Forward and backward; the loss in nats per byte."""
    with mixed_precision(tokens.device.type):
        loss = model.loss(tokens)
    loss.backward()
    return loss.item()


def mixed_precision(device: str) -> torch.autocast:
    """The GPU kernels take 16-bit inputs; the CPU's fp32 is faster than its bf16."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def median_time(run: Callable[[], object], repeats: int = 3) -> float:
    """Seconds; the first call warms up and is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def compare_with_eager(model: DiffLM, build: Callable[[str], DiffLM], tokens: Tensor) -> None:
    """One training step of the same weights on the same tokens, both ways."""
    eager = build("eager")
    eager.load_state_dict(model.state_dict())
    results = {}
    for name, candidate in (("fused", model), ("eager", eager)):
        seconds = median_time(partial(training_step, candidate, tokens))
        with torch.no_grad(), mixed_precision(tokens.device.type):
            results[name] = seconds, candidate.loss(tokens).item()
    (fused, fused_loss), (slow, eager_loss) = results["fused"], results["eager"]
    print(f"forward+backward of {tokens.shape[0]} × {tokens.shape[1] - 1} tokens:")
    print(f"  fused {fused * 1e3:7.0f} ms   loss {fused_loss:.5f}")
    print(f"  eager {slow * 1e3:7.0f} ms   loss {eager_loss:.5f}   {slow / fused:.2f}× the time")


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    text = standard_library(limit=20 if args.tiny else None)
    held_out, text = text[: len(text) // 20], text[len(text) // 20 :]

    def build(implementation: str) -> DiffLM:
        max_seqlen = max(args.seqlen, len(PROMPT) + args.new_tokens, len(SNIPPET))
        return DiffLM(
            args.dim,
            args.depth,
            args.heads,
            args.kv_heads,
            max_seqlen,
            implementation=implementation,
        ).to(args.device)

    model = build("fused")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(text) / 1e6:.1f} MB of Python, {parameters / 1e6:.1f} M parameters, {args.device}")

    start = time.perf_counter()
    losses = train(model, text, args)
    seconds = time.perf_counter() - start
    with torch.no_grad(), mixed_precision(args.device):
        unseen = model.loss(sample(held_out, 8, args.seqlen, args.device)).item()
    last = sum(losses[-20:]) / len(losses[-20:])  # a batch is small: its loss alone is noisy
    print(f"loss {losses[0]:.3f} → {last:.3f} nats a byte; on unseen files {unseen:.3f}")
    print(f"{len(losses) * args.batch * args.seqlen / seconds:.0f} tokens/s in training")

    compare_with_eager(model, build, sample(text, args.batch, args.seqlen, args.device))
    model.zero_grad()

    prompt = torch.tensor([list(PROMPT.encode())], device=args.device)
    cache_dtype = torch.bfloat16 if args.device == "cuda" else None
    start = time.perf_counter()
    with mixed_precision(args.device):
        written = model.generate(prompt, args.new_tokens, args.temperature, cache_dtype)
    rate = args.new_tokens / (time.perf_counter() - start)
    print(f"{rate:.0f} tokens/s in generation, through the KV cache:\n")
    print(bytes(written[0].tolist()).decode(errors="replace"))

    plot_loss(losses, args.out / "loss.png")
    plot_attention(model, SNIPPET, args.out / "attention.png")
    print(f"\nplots: {args.out / 'loss.png'}, {args.out / 'attention.png'}")


if __name__ == "__main__":
    main()
