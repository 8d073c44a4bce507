"""How many pairs of a query and a key the tiles hold that a kernel visits."""

from __future__ import annotations

MMA_FLOP = 16 * 8 * 16 * 2  # of one instruction


def tiled_pairs(seqlen: int, rows: int, keys: int, causal: bool = True) -> int:
    """Of tiles of rows x keys that hold a visible pair; as many queries as keys."""
    total = 0
    for first in range(0, seqlen, rows):
        seen = min(first + rows, seqlen) if causal else seqlen
        total += rows * -(-seen // keys) * keys
    return total
