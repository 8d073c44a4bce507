"""What the second map cancels: an ordinary and a DIFF Transformer learn the same retrieval.

    python examples/noise.py --out noise_out

Both have the same widths, depth and (but for λ and a norm) parameters, and see the same rows for as
many steps. Then, on unseen text: how much attention lands on the answer and on noise, before and
after training; retrieval by number of keys and depth; the largest activations; and what is left
when attention logits are rounded to 8, 6 and 4 bits (the paper's questions, arXiv 2410.05258).
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Idle OpenMP threads sleep: spinning, they cost a busy machine most of its speed. Read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from diff_lm import DiffLM
from noise_plots import plot_noise
from passkey_lm import exact_match, texts, train
from torch import Tensor, nn
from torch.nn import functional as F

from diffattn_cuda.duo import Passkeys
from diffattn_cuda.reference import apply_rotary, visible_keys

DIM, HEADS, SYMBOLS = 128, 4, 8  # the ordinary model has twice the heads, all of d = 16
LINE = 26  # bytes of a declaration or a question
BITS = (8, 6, 4)
# An ordinary model needs more copies than a DIFF model before it retrieves; both get them.
STAGES = ((0.45, 64), (0.6, 128), (0.8, 256), (1.0, 512))


class OrdinaryAttention(nn.Module):
    """Softmax attention with a DIFF layer's projections and, if asked for, its norm of heads."""

    def __init__(self, dim: int, heads: int, head_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        self.head_norm = nn.RMSNorm(dim // heads, eps=1e-5) if head_norm else nn.Identity()
        self.attention_override: Probe | None = None  # as a DIFF layer has one

    def forward(self, x: Tensor, rel_pos: tuple[Tensor, Tensor], cache: None) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = (table[: x.shape[1]] for table in rel_pos)
        q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        if self.attention_override is not None:
            out = self.attention_override.ordinary(q, k, v)
        else:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (b, h, s, d)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return self.out_proj(self.head_norm(out).flatten(2))


def build(kind: str, depth: int, head_norm: bool = False) -> DiffLM:
    model = DiffLM(DIM, depth, HEADS, HEADS, 1024)
    if kind == "ordinary":
        for block in model.blocks:
            block.attn = OrdinaryAttention(DIM, 2 * HEADS, head_norm)
    return model


class Probe:
    """Attention as a formula, in a layer's place: it keeps the maps, and may round the logits.

    Attributes:
        maps: by name, (batch, heads, seqlen, seqlen), of the last call.
        largest: the largest |logit| so far.
    """

    def __init__(self, bits: int | None = None) -> None:
        self.bits = bits
        self.maps: dict[str, Tensor] = {}
        self.largest = 0.0

    def ordinary(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b, s, h, d) each → the same."""
        p = self._softmax(q, k)
        self.maps = {"P": p}
        return (p @ v.transpose(1, 2)).transpose(1, 2)

    def diff_flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, lam: Tensor, norm_weight: Tensor, norm_eps: float,
        out_scale: float, **mask: Any,
    ) -> Tensor:  # fmt: skip
        """(b, s, h, 2, d) twice and (b, s, h, 2d) → like v."""
        p1, p2 = (self._softmax(q[:, :, :, c], k[:, :, :, c]) for c in (0, 1))
        self.maps = {"P1": p1, "λ·P2": lam * p2, "P1 − λ·P2": p1 - lam * p2}
        out = ((p1 - lam * p2) @ v.transpose(1, 2)).transpose(1, 2)
        return F.rms_norm(out, out.shape[-1:], norm_weight, norm_eps) * out_scale

    def _softmax(self, q: Tensor, k: Tensor) -> Tensor:
        seqlen = q.shape[1]
        s = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / q.shape[-1] ** 0.5  # (b, h, s, s)
        visible = visible_keys(seqlen, seqlen, True, (-1, -1), q.device)
        most = s.masked_fill(~visible, 0).abs().amax((-2, -1), keepdim=True)  # (b, h, 1, 1)
        self.largest = max(self.largest, most.max().item())
        if self.bits is not None:  # symmetric, to the largest logit of a head
            step = most / (2 ** (self.bits - 1) - 1)
            s = (s / step).round() * step
        return s.masked_fill(~visible, -torch.inf).softmax(-1)


def set_probe(model: DiffLM, bits: int | None = None) -> list[Probe]:
    """A probe in each layer; the forward is then the formula's."""
    probes = []
    for block in model.blocks:
        probes.append(Probe(bits))
        block.attn.attention_override = probes[-1]  # type: ignore[union-attr]
    return probes


def remove_probe(model: DiffLM) -> None:
    for block in model.blocks:
        block.attn.attention_override = None  # type: ignore[union-attr]


@dataclass
class Mass:
    """Of one kind of map, in the head that puts most on answers."""

    layer: int
    head: int
    answer: float  # on the symbol that comes next
    noise: float  # Σ|weight| outside the asked key's declaration and the question
    answer_all: float  # the mean over all heads and layers
    noise_all: float


@torch.no_grad()
def attention_mass(model: DiffLM, rows: tuple[Tensor, Tensor, Tensor]) -> dict[str, Mass]:
    """By kind of map: what rows that predict a symbol of an answer put where."""
    tokens, labels, source = rows
    probes = set_probe(model)
    model(tokens)
    remove_probe(model)
    batch, place = labels.nonzero().unbind(1)
    row, key = place - 1, source[batch, place]  # row predicts what stands at place
    at = torch.arange(tokens.shape[1])
    number = (key - first_of_key(source, batch, place))[:, None]  # of the symbol, 0 to 7
    declaration = (at >= key[:, None] - number - (LINE - 1 - SYMBOLS)) & (
        at <= key[:, None] - number + SYMBOLS
    )
    question = (at > row[:, None] - number - (LINE - 1 - SYMBOLS)) & (at <= row[:, None])
    noisy = ~(declaration | question)
    masses = {}
    for name in probes[0].maps:
        weights = torch.stack([p.maps[name][batch, :, row] for p in probes])  # (L, rows, h, s)
        where = key[None, :, None, None].expand(*weights.shape[:3], 1)
        answer = weights.gather(-1, where)[..., 0].mean(1)  # (L, h)
        noise = (weights.abs() * noisy[:, None]).sum(-1).mean(1)
        layer, head = divmod(int(answer.argmax()), answer.shape[1])
        best = answer[layer, head].item(), noise[layer, head].item()
        masses[name] = Mass(layer, head, *best, answer.mean().item(), noise.mean().item())
    return masses


def first_of_key(source: Tensor, batch: Tensor, place: Tensor) -> Tensor:
    """Where the declared key of each asked symbol begins: labels come in runs of SYMBOLS."""
    return source[batch, place].view(-1, SYMBOLS)[:, :1].expand(-1, SYMBOLS).flatten()


def prompts(unseen: bytes, keys: int, rows: int, length: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return Passkeys(unseen, keys, length, generator).batch(rows)


def retrieval(model: DiffLM, unseen: bytes, rows: int, length: int) -> list[list[float]]:
    """Exact match by keys in a row, 1 to 4, and by fifth of the text that a key is declared in."""
    table = []
    for keys in (1, 2, 3, 4):
        tokens, labels, source = prompts(
            unseen, keys, max(2, rows // keys), length, seed=100 + keys
        )
        right = torch.cat(
            [
                exact_match(model, *part)
                for part in zip(tokens.split(16), labels.split(16), strict=True)
            ]
        ).flatten()  # one per question
        depth = source[labels].view(-1, SYMBOLS)[:, 0] / (length - LINE * keys)
        fifth = (depth * 5).long().clamp(max=4)
        table.append([right[fifth == i].float().mean().item() for i in range(5)]
                     + [right.float().mean().item()])  # fmt: skip
    return table


@torch.no_grad()
def activations(model: DiffLM, tokens: Tensor) -> dict[str, float]:
    """Largest and median |activation| of the residual stream, and the largest |logit|."""
    hidden: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, inputs, out: hidden.append(out.abs()))
             for block in model.blocks]  # fmt: skip
    probes = set_probe(model)
    model(tokens)
    remove_probe(model)
    for hook in hooks:
        hook.remove()
    return {
        "largest hidden": max(h.max().item() for h in hidden),
        "median hidden": torch.stack(hidden).median().item(),
        "largest logit": max(probe.largest for probe in probes),
    }


def rounded(model: DiffLM, unseen: bytes, rows: int, length: int) -> dict[str, float]:
    """Exact match by keys in a row and bits of the attention logits. One key is there because a
    model that answers nothing has nothing to lose."""
    results = {}
    for keys in (1, 3):
        tokens, labels, _ = prompts(unseen, keys, rows, length, seed=2)
        for bits in (None, *BITS):
            set_probe(model, bits)
            parts = zip(tokens.split(8), labels.split(8), strict=True)
            right = torch.cat([exact_match(model, *part) for part in parts])
            name = "fp32" if bits is None else f"{bits} bits"
            results[f"{keys} key{'s' * (keys > 1)}, {name}"] = right.float().mean().item()
    remove_probe(model)
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("noise_out"), help="folder of the plot")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--length", type=int, default=512, help="bytes of a prompt")
    parser.add_argument("--lr-diff", type=float, default=3e-3)
    parser.add_argument("--lr-ordinary", type=float, default=3e-3)
    parser.add_argument("--head-norm", action="store_true", help="also in the ordinary model")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds")
    args = parser.parse_args()
    if args.tiny:
        args.steps, args.depth, args.prompts, args.length = 12, 2, 8, 256
    return args


def main() -> None:
    args = parse_arguments()
    threads = torch.get_num_threads()
    args.out.mkdir(parents=True, exist_ok=True)
    text, unseen = texts(args.tiny)
    rows = prompts(unseen, 3, max(2, args.prompts // 6), args.length, seed=1)
    results: dict[str, dict[str, Any]] = {}
    clock = time.perf_counter(), time.process_time()
    for kind, lr in (("ordinary", args.lr_ordinary), ("DIFF", args.lr_diff)):
        torch.manual_seed(args.seed)
        model = build(kind, args.depth, args.head_norm)
        parameters = sum(p.numel() for p in model.parameters())
        before = attention_mass(model, rows)
        torch.set_num_threads(1)  # at 1,024 tokens per step a second one does not pay
        losses = train(model, text, args.steps, args.seed, lr, STAGES, kind)
        torch.set_num_threads(threads)
        answers, rest = (sum(column[-50:]) / 50 for column in zip(*losses, strict=True))
        print(f"{kind}: {parameters:,} parameters, lr {lr}, answers {answers:.3f}, text {rest:.3f}")
        results[kind] = {
            "losses": losses,
            "before": before,
            "after": attention_mass(model, rows),
            "retrieval": retrieval(model, unseen, args.prompts, args.length),
            "activations": activations(model, rows[0]),
            "rounded": rounded(model, unseen, args.prompts // 2, args.length),
        }
    print_results(results)
    plot_noise(results, args.out / "noise.svg")
    wall, cpu = time.perf_counter() - clock[0], time.process_time() - clock[1]
    print(f"\n{args.out / 'noise.svg'}; {wall:.0f} s, {cpu:.0f} s of CPU")


def print_results(results: dict[str, dict[str, Any]]) -> None:
    """As tables in markdown."""
    print("\n| map | when | best head | answer | noise | all heads: answer | noise |")
    print("|---|---|---|---:|---:|---:|---:|")
    for result in results.values():
        for when in ("before", "after"):
            for name, m in result[when].items():
                print(f"| {name} | {when} | layer {m.layer}, head {m.head} | {m.answer:.3f} | "
                      f"{m.noise:.3f} | {m.answer_all:.3f} | {m.noise_all:.3f} |")  # fmt: skip
    print("\n| exact match | keys | depth 0–0.2 | 0.2–0.4 | 0.4–0.6 | 0.6–0.8 | 0.8–1 | all |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for kind, result in results.items():
        for keys, cells in enumerate(result["retrieval"], 1):
            print(f"| {kind} | {keys} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    for what in ("activations", "rounded"):
        names = list(next(iter(results.values()))[what])
        print(f"\n| {what} | " + " | ".join(names) + " |\n|---|" + "---:|" * len(names))
        for kind, result in results.items():
            cells = " | ".join(f"{result[what][name]:.2f}" for name in names)
            print(f"| {kind} | {cells} |")


if __name__ == "__main__":
    main()
