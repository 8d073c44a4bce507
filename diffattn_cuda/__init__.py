"""Differential attention (Diff Transformer, arXiv 2410.05258) in one kernel, for PyTorch."""

from importlib import metadata

try:
    from .components import combine_components, diff_flash_attn_backward, merge_components
    from .functional import (
        diff_flash_attn_func,
        diff_flash_attn_varlen_func,
        diff_flash_attn_with_kvcache,
    )
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "diffattn_cuda needs PyTorch >= 2.10, which is not installed", name="torch"
    ) from None

try:
    __version__ = metadata.version("diffattn_cuda")
except metadata.PackageNotFoundError:  # a source tree, built in place
    __version__ = "0+unknown"

__all__ = [
    "combine_components",
    "diff_flash_attn_backward",
    "diff_flash_attn_func",
    "diff_flash_attn_varlen_func",
    "diff_flash_attn_with_kvcache",
    "merge_components",
]
