"""Differential attention (Diff Transformer, arXiv 2410.05258) in one kernel, for PyTorch."""

from .functional import (
    diff_flash_attn_func,
    diff_flash_attn_varlen_func,
    diff_flash_attn_with_kvcache,
)

__version__ = "0.1.0"

__all__ = [
    "diff_flash_attn_func",
    "diff_flash_attn_varlen_func",
    "diff_flash_attn_with_kvcache",
]
