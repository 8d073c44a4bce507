"""Record what 200 calls return, bit for bit, and compare with a record: a refactoring changes none.

    python tools/bitwise.py record before.json              # the CPU
    python tools/bitwise.py compare before.json
    python tools/bitwise.py record before.json --device sim # the simulated GPU

Calls are drawn from their number alone, over every feature of the three functions: dtypes, head
dims, grouped heads, shared K, masks, norms, λ in each form, gradients with and without dLSE, packed
batches, caches with pages, padding, appended keys, rotary tables and splits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from diffattn_cuda import (  # noqa: E402
    diff_flash_attn_func,
    diff_flash_attn_varlen_func,
    diff_flash_attn_with_kvcache,
)

DTYPES = {"cpu": [torch.float16, torch.bfloat16, torch.float32, torch.float64]}
DTYPES["sim"] = DTYPES["cpu"][:2]


class Draw:
    """One call's choices and tensors, from its number."""

    def __init__(self, number: int, device: str) -> None:
        self.random = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        self.simulated = device == "sim"  # there the order of atomic additions varies
        self.dtype = self.random.choice(DTYPES[device])
        self.d = self.random.choice([8, 32, 40, 64, 64, 80, 96, 128, 128])
        self.dv = self.d * self.random.choice([1, 2, 2])
        self.nheads_k = self.random.choice([1, 2])
        self.nheads = self.nheads_k * self.random.choice([1, 1, 2, 3])
        self.components = self.random.choice([1, 2]) if self.dv == self.d else 2

    @property
    def compute(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype or self.dtype)

    def some(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def lam(self, *rows: int) -> float | Tensor:
        shape = self.random.choice([None, (), (self.nheads,), (*rows, self.nheads)])
        return 0.4 if shape is None else self.normal(*shape, dtype=self.compute)

    def options(self) -> dict[str, Any]:
        window = self.random.choice([(-1, -1), (-1, -1), (7, 3), (40, -1), (-1, 20)])
        chosen: dict[str, Any] = {"causal": self.some(), "window_size": window}
        if self.some():
            chosen["norm_eps"] = 1e-5
            chosen["norm_weight"] = (
                self.normal(self.dv, dtype=self.compute) if self.some() else None
            )
        chosen["out_scale"] = self.random.choice([1.0, 0.8])
        chosen["softmax_scale"] = self.random.choice([None, 0.3, -0.2])
        chosen["return_lse"] = True
        return chosen


def differentiated(
    call: Draw, results: tuple[Tensor, Tensor], leaves: list[Tensor]
) -> list[Tensor]:
    out, lse = results
    grads = [call.normal(*out.shape), call.normal(*lse.shape, dtype=lse.dtype)]
    with_lse = call.some(0.3)
    outputs = [out, lse] if with_lse else [out]
    return [out, lse, *torch.autograd.grad(outputs, leaves, grads[: len(outputs)])]


def training(call: Draw, *, packed: bool) -> list[Tensor]:
    longest = call.random.choice([1, 17, 64, 130, 200])
    batch = call.random.choice([1, 2])
    sizes_q = (
        [call.random.randint(0, longest) for _ in range(batch)] if packed else [longest] * batch
    )
    more = call.random.choice([0, 0, 33])
    sizes_k = [n + more for n in sizes_q]
    rows_q = (sum(sizes_q),) if packed else (batch, longest)
    rows_k = (sum(sizes_k),) if packed else (batch, longest + more)
    leaves = [
        call.normal(*rows_q, call.nheads, 2, call.d),
        call.normal(*rows_k, call.nheads_k, call.components, call.d),
        call.normal(*rows_k, call.nheads_k, call.dv),
    ]
    lam = call.lam(*rows_q)
    options = call.options() | {"deterministic": call.some() or call.simulated}
    for weight in (lam, options.get("norm_weight")):
        if isinstance(weight, Tensor):
            leaves.append(weight)
    for leaf in leaves:
        leaf.requires_grad_()
    q, k, v = leaves[:3]
    if not packed:
        return differentiated(call, diff_flash_attn_func(q, k, v, lam, **options), leaves)
    ends_q, ends_k = (
        torch.tensor([0, *n]).cumsum(0, dtype=torch.int32) for n in (sizes_q, sizes_k)
    )
    results = diff_flash_attn_varlen_func(
        q, k, v, lam, ends_q, ends_k, max(sizes_q), max(sizes_k), **options
    )
    return differentiated(call, results, leaves)


def decoding(call: Draw) -> list[Tensor]:
    batch, rows = call.random.choice([1, 3]), call.random.choice([1, 1, 2, 5, 40])
    capacity, page = 160, 16
    paged, appends = call.some(), call.some(0.6)
    new = call.random.choice([1, rows, 70]) if appends else 0
    blocks = batch * capacity // page if paged else batch + 1
    cache_rows = page if paged else capacity
    caches = [
        call.normal(blocks, cache_rows, call.nheads_k, call.components, call.d),
        call.normal(blocks, cache_rows, call.nheads_k, call.dv),
    ]
    lengths = [call.random.randint(0, capacity - new - rows) for _ in range(batch)]
    options = call.options() | {"num_splits": call.random.choice([0, 1, 2, 5])}
    options["cache_seqlens"] = torch.tensor(lengths, dtype=torch.int32)
    order = torch.randperm(blocks, generator=call.generator).int()
    if paged:
        options["block_table"] = order.view(batch, -1)
    else:
        options["cache_batch_idx"] = order[:batch].contiguous()
    if call.some(0.3):
        options["cache_leftpad"] = torch.tensor([n // 3 for n in lengths], dtype=torch.int32)
    if appends:
        options["k"] = call.normal(batch, new, call.nheads_k, call.components, call.d)
        options["v"] = call.normal(batch, new, call.nheads_k, call.dv)
        if call.d >= 16 and call.some():
            angles = (capacity, call.random.choice([8, call.d // 16 * 8]))
            options["rotary_cos"], options["rotary_sin"] = (
                call.normal(*angles),
                call.normal(*angles),
            )
            options["rotary_interleaved"] = call.some()
    q = call.normal(batch, rows, call.nheads, 2, call.d)
    results = diff_flash_attn_with_kvcache(
        q, caches[0], caches[1], call.lam(batch, rows), **options
    )
    return [*results, *caches]


KINDS: list[Callable[[Draw], list[Tensor]]] = [
    lambda call: training(call, packed=False),
    lambda call: training(call, packed=True),
    decoding,
]


def digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for t in tensors:
        found.update(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def record(count: int, device: str) -> list[str]:
    if device == "sim":
        from support import simulator

        simulator.start()
    numbers = tqdm(range(count), desc=f"calls on {device}", disable=None)
    return [digest(KINDS[n % len(KINDS)](Draw(n, device))) for n in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", choices=["cpu", "sim"], default="cpu")
    parser.add_argument("--calls", type=int, default=200)
    args = parser.parse_args()
    found = record(args.calls, args.device)
    if args.action == "record":
        args.file.write_text(json.dumps(found))
        return
    before = json.loads(args.file.read_text())
    if len(before) != len(found):
        raise SystemExit(f"{args.file} has {len(before)} calls, --calls asks for {len(found)}")
    differ = [n for n, (a, b) in enumerate(zip(before, found, strict=True)) if a != b]
    if differ:
        raise SystemExit(f"{len(differ)} of {len(found)} calls differ: {differ[:20]}")
    print(f"{len(found)} calls, every bit as before")


if __name__ == "__main__":
    main()
