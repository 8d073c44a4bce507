"""A case: one point of the argument space, with a readable name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

SHORT = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
DTYPES = list(SHORT)
REGIMES = ["normal", "init", "sharp"]
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 127, 129, 511]
LAMBDAS = ["float", "zero", "one", "negative", "scalar", "head", "token", "narrow"]
WIDTHS = list(range(8, 129, 8))


def short(value: object) -> str:
    """An id for a parameter: dtypes get their usual short names."""
    return SHORT.get(value, str(value)) if isinstance(value, torch.dtype) else str(value)


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call. `lam` and `regime` name entries of support.data."""

    batch: int = 2
    sq: int = 65
    sk: int = 65
    heads: int = 2
    heads_k: int = 1
    d: int = 32
    dv: int = 64
    dtype: torch.dtype = torch.float32
    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    sink: int = 0
    streaming: tuple[bool, ...] | None = None  # for each KV head
    shared_k: bool = False  # V2: k has heads_k heads, both components read it
    lam: str = "float"
    norm: str = "none"  # none, plain (eps only), affine (weight too)
    out_scale: float = 1.0
    scale: float | None = None
    softcap: float = 0.0
    lse: bool = False  # the LSE is differentiated too
    regime: str = "normal"
    seed: int = 0

    def __str__(self) -> str:
        name = f"B{self.batch}-Sq{self.sq}-Sk{self.sk}-H{self.heads}-Hk{self.heads_k}"
        name += f"-d{self.d}-dv{self.dv}-{SHORT[self.dtype]}"
        name += "-causal" * self.causal + "-V2" * self.shared_k
        if self.window != (-1, -1):
            name += f"-win({self.window[0]},{self.window[1]})"
        name += f"-sink{self.sink}" * (self.sink > 0)
        if self.streaming is not None:
            name += "-" + "".join("s" if streams else "f" for streams in self.streaming)
        name += f"-lam_{self.lam}" + f"-norm_{self.norm}" * (self.norm != "none")
        name += f"-x{self.out_scale}" * (self.out_scale != 1.0)
        name += f"-s{self.scale}" * (self.scale is not None) + "-lse" * self.lse
        name += f"-cap{self.softcap}" * (self.softcap > 0)
        return f"{name}-{self.regime}"

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


def pairwise_cases(
    most_pairs: int,
    *,
    sq: list[int],
    sk: list[int],
    d: list[int],
    window: list[tuple[int, int]],
    heads: list[tuple[int, int]],
    batch: list[int],
) -> list[Case]:
    """All pairs of these and the other options. More than most_pairs of a query and a key, and the
    clock allows for two heads only."""
    axes: dict[str, list[Any]] = {
        "sq": sq, "sk": sk, "d": d, "window": window, "causal": [False, True], "heads": heads,
        "double": [True, False], "shared_k": [False, True], "lam": LAMBDAS,
        "norm": ["none", "plain", "affine"], "out_scale": [1.0, 0.2], "scale": [None, 0.1],
        "batch": batch, "dtype": DTYPES, "regime": REGIMES,
    }  # fmt: skip
    cases = []
    for seed, row in enumerate(pairwise(axes)):
        nheads, nheads_k = row.pop("heads")
        dv = row["d"] * (2 if row.pop("double") else 1)
        if row["sq"] * row["sk"] > most_pairs:
            row["batch"], nheads, nheads_k = 1, 2, 1
        cases.append(Case(**row, heads=nheads, heads_k=nheads_k, dv=dv, seed=seed))
    return cases


def pairwise(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Few rows in which every pair of values of every two axes occurs (greedy all-pairs).

    A product of the axes would take hours; most faults of a kernel need two options to meet.
    """
    names = list(axes)
    uncovered = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
    }
    rows: list[dict[str, Any]] = []
    while uncovered:
        row: dict[str, int] = dict(min(uncovered, key=repr))
        for name in names:
            if name not in row:
                gains = [_gain(row, name, i, uncovered, names) for i in range(len(axes[name]))]
                # Among equal gains rotate with the row number, so that no value is neglected.
                best = max(gains)
                ties = [i for i, gain in enumerate(gains) if gain == best]
                row[name] = ties[len(rows) % len(ties)]
        uncovered -= set(_pairs(row, names))
        rows.append({name: axes[name][row[name]] for name in names})
    return rows


def _pairs(row: dict[str, int], names: list[str]) -> list[Any]:
    present = [(name, row[name]) for name in names if name in row]
    return list(combinations(present, 2))


def _gain(row: dict[str, int], name: str, i: int, uncovered: set[Any], names: list[str]) -> int:
    grown = {**row, name: i}
    return sum(pair in uncovered for pair in _pairs(grown, names) if (name, i) in pair)
