"""What the kernels are measured against.

Limits on counted figures, from the neighbours' own compiled kernels (FlashAttention-2,
flex_head_fa; nvcc 13.0, sm_80) and from the formulas; goals of predicted speeds.
"""

from __future__ import annotations

from counting.record import Counts

# The most that a figure of any kernel of this name may be.
LIMITS = {
    "fwd": {
        "spilled_bytes": 0,
        "flop_ratio": 1.02,
        "loop_wavefronts_ratio": 1.02,
        "global_bytes_ratio": 1.0,
    },
    "bwd": {
        "spilled_bytes": 0,
        "flop_ratio": 1.03,
        "loop_wavefronts_ratio": 1.03,
    },
    "decode": {
        "spilled_bytes": 0,
        "copied_ratio": 1.02,
        "distinct_ratio": 1.02,
        "workspace_ratio": 0.02,
        "launches": 2,
    },
}
# Of the widths that matter most, also these.
MARKS = {
    ("fwd", 64, 128): {"others_per_hmma": 2.5, "loop_wavefronts_per_mma": 1.2},
    ("fwd", 128, 256): {"others_per_hmma": 2.2, "loop_wavefronts_per_mma": 1.7},
    ("bwd", 64, 128): {"others_per_hmma": 2.5, "loop_wavefronts_per_mma": 2.3},
    ("bwd", 128, 256): {"others_per_hmma": 2.0, "loop_wavefronts_per_mma": 2.4},
}

# × four calls of FlashAttention-2, causal, on an A100, by head dim.
GOALS = {"fwd": {64: 1.5, 128: 1.25}, "bwd": {64: 1.9, 128: 1.7}, "fwd + bwd": {64: 1.8, 128: 1.5}}
# Of the bandwidth of memory, at so many bytes of cache.
DECODE_GOAL, DECODE_BYTES = 0.85, 64 << 20


def limits(c: Counts) -> dict[str, float]:
    """By figure, for one kernel."""
    found = LIMITS.get(c.kernel, {}) | MARKS.get((c.kernel, c.headdim, c.headdim_v), {})
    if c.kernel == "bwd":
        found |= {"saved_bytes_per_row": 4 * c.headdim_v + 12}
    return found


def misses(c: Counts) -> list[str]:
    """Figures over their limits."""
    return [
        name
        for name, most in limits(c).items()
        if name in c.figures and c.figures[name] > most * (1 + 1e-6)
    ]
