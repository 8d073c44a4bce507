"""bf16 in numpy, which has no such type."""

import numpy as np


def bf16_bits(x):
    """Rounded to nearest even; for finite x."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_values(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)
