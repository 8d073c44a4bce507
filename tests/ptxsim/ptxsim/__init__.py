"""A strict GPU on the CPU: runs the PTX that nvcc made, and stops at the first broken rule."""

from . import errors
from ._engine import folder as engine_folder
from .device import CHECKS, Counters, Device, Registration, Tensor, raise_pending
from .errors import (
    BadProgram,
    Deadlock,
    Divergence,
    LaunchLimit,
    Misaligned,
    OutOfBounds,
    Race,
    SimError,
    Trap,
    Undefined,
    Unsupported,
)
from .library import Library, compile_object, link_library, on_ptx
from .module import Kernel, Module, compile_cu, find_nvcc, load_ptx, set_smem_limit, use_ptxas_log

__all__ = [
    "CHECKS", "BadProgram", "Counters", "Deadlock", "Device", "Divergence", "Kernel", "LaunchLimit", "Library", "Misaligned", "Module",
    "OutOfBounds", "Race", "Registration", "SimError", "Tensor", "Trap", "Undefined", "Unsupported", "compile_cu", "compile_object",
    "engine_folder", "errors", "find_nvcc", "link_library", "load_ptx", "on_ptx", "raise_pending", "set_smem_limit", "use_ptxas_log",
]  # fmt: skip
