"""Hopper's forward next to the kernels that would do its work there: predictions.

Ours by the model of docs/predictions.md, theirs by their published speeds, or by the model where
none are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .figures import HOPPER_GOALS, Counts
from .model import H100, H100_WGMMA, Work, tiled_pairs, work_of

SEQLENS = [2048, 4096, 16384]
MAPS = 2


@dataclass(frozen=True)
class Recipe:
    """Calls of a stock kernel that give both maps' results."""

    d: int
    name: str
    flop: int  # in units of d, per pair
    # TFLOP/s of its own flop: (S = 2k, 16k), full and causal. Empty: not published.
    full: tuple[float, ...] = ()
    causal: tuple[float, ...] = ()
    of_formula: str = ""  # where nothing is published: TFLOP/s of 12d, as far as anyone can tell

    def seconds(self, seqlen: int, causal: bool) -> float | None:
        """Of one head, and the combination of both results in one pass over memory."""
        speeds = self.causal if causal else self.full
        if not speeds:
            return None
        speed = speeds[[SEQLENS[0], SEQLENS[-1]].index(seqlen)]
        pairs = seqlen * (seqlen + 1) / 2 if causal else seqlen**2
        heads_share = self.flop * self.d * pairs / (speed * 1e12)
        return heads_share + seqlen * 12 * self.d / H100.bandwidth


# FlashAttention-3, forward, published for an H100: head dim 64, 128, 256.
FA3_64 = ((460, 497), (371, 473))
FA3_128 = ((625, 648), (521, 616))
FA3_256 = ((707, 756), (537, 642))
RECIPES = [
    Recipe(64, "two FA3 calls, Q and K padded to 128", 16, *FA3_128),
    Recipe(64, "four FA3 calls, V in halves", 16, *FA3_64),
    Recipe(64, "two cuDNN calls", 12, of_formula="525–595, not measured"),
    Recipe(64, "two FA4 calls, tile chosen by hand", 12, of_formula="about 595, by the model"),
    Recipe(128, "two FA3 calls, Q and K padded to 256", 16, *FA3_256),
    Recipe(128, "four FA3 calls, V in halves", 16, *FA3_128),
    Recipe(128, "four cuDNN calls, V in halves", 16, of_formula="about 526, not measured"),
    Recipe(128, "two FA4 calls, tile chosen by hand", 12, of_formula="675–740, by the model"),
]


def seconds(work: Work, seqlen: int, causal: bool) -> float:
    """Of one head."""
    pairs = tiled_pairs(seqlen, *work.tile, causal)
    return pairs * work.clocks(H100_WGMMA) / H100_WGMMA.clock_rate


def tflops(counts: list[Counts], d: int, dv: int, seqlen: int) -> float:
    """Causal, of the formula's flop over visible pairs."""
    work = work_of(counts, "fwd sm90", d, dv)
    flop = MAPS * 2 * (d + dv) * seqlen * (seqlen + 1) / 2
    return flop / seconds(work, seqlen, True) / 1e12


def times_sm80(counts: list[Counts], d: int, seqlen: int) -> float:
    """How many times longer the kernel of sm_80 takes, causal, V twice as wide as Q."""
    older = work_of(counts, "fwd", d).causal_seconds(H100, seqlen)
    return older / seconds(work_of(counts, "fwd sm90", d), seqlen, True)


def times_recipe(counts: list[Counts], recipe: Recipe, seqlen: int, causal: bool) -> float | None:
    theirs = recipe.seconds(seqlen, causal)
    ours = seconds(work_of(counts, "fwd sm90", recipe.d), seqlen, causal)
    return theirs / ours if theirs else None


def loops(counts: list[Counts]) -> Iterator[list[str]]:
    for c in counts:
        if c.kernel == "fwd sm90" and "full" in c.problem:
            f = c.figures
            yield [f"({c.headdim}, {c.headdim_v})", *(f"{f[name]:.4g}" for name in LOOP)]


LOOP = ("tile_keys", "hmma", "others", "flop_ratio", "shared_bytes_per_pair", "l2_bytes_per_pair")


def speeds(counts: list[Counts]) -> Iterator[list[str]]:
    for c in counts:
        if c.kernel != "fwd sm90" or "full" not in c.problem:
            continue
        d, dv = c.headdim, c.headdim_v
        wide = dv == 2 * d
        line = [f"({d}, {dv})", *(f"{tflops(counts, d, dv, s):.0f}" for s in SEQLENS)]
        line += [f"{times_sm80(counts, d, SEQLENS[-1]):.2f}" if wide else ""]
        yield [*line, f"≥ {HOPPER_GOALS[d]:g}" if wide else ""]


def against_peers(counts: list[Counts]) -> Iterator[list[str]]:
    for recipe in RECIPES:
        found = [
            times_recipe(counts, recipe, seqlen, causal)
            for causal in (False, True)
            for seqlen in (SEQLENS[0], SEQLENS[-1])
        ]
        cells = [f"{x:.2f}" if x else "" for x in found]
        if not any(cells):
            cells[0] = f"TFLOP/s of 12d: {recipe.of_formula}"
        yield [f"({recipe.d}, {2 * recipe.d}): {recipe.name}", f"{recipe.flop}d", *cells]
