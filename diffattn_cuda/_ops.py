"""The ops that this build registered, and the modules that hold them.

A build for the kernel hub has another file in this place, which kernel-builder writes. That file
has `ops` and `add_op_namespace_prefix` alone, so the rest of the package asks for nothing else
here; only the self-test, which checks an installed package, does.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

if TYPE_CHECKING:
    from ._schemas import Ops

OLDEST_TORCH = (2, 10)  # its stable ABI is the first that has what the bindings use


def _import_cpu() -> None:
    """Loads the schemas and the CPU kernels."""
    try:
        importlib.import_module(f"{__package__}._cpu")
    except ImportError as error:
        if importlib.util.find_spec(f"{__package__}._cpu") is None:
            raise ImportError(_no_modules()) from None
        found = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if found < OLDEST_TORCH:
            needed = ".".join(map(str, OLDEST_TORCH))
            raise ImportError(
                f"diffattn_cuda needs PyTorch >= {needed}, found {torch.__version__}"
            ) from error
        raise


def _no_modules() -> str:
    return (
        f"{Path(__file__).parent} has no compiled modules. If it is a clone that hides an installed"
        " diffattn_cuda, start Python in another folder; to build it in place: make build, or "
        "python setup.py build_ext --inplace"
    )


def _import_cuda() -> str:
    """Loads the CUDA kernels where there are any; else says why not, and what to do."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA: install one that was"
    if importlib.util.find_spec(f"{__package__}._cuda") is None:
        return (
            "this diffattn_cuda was built without its CUDA module: install nvcc and CUTLASS's "
            "headers (README.md says how), and build it again with DIFFATTN_CUDA=1 pip install "
            "--no-build-isolation --force-reinstall --no-deps ."
        )
    importlib.import_module(f"{__package__}._cuda")
    return ""


def _refuse_cuda(op: str, why: str) -> None:
    def refuse(*args: Any) -> NoReturn:
        raise RuntimeError(f"{add_op_namespace_prefix(op)} got CUDA tensors, but {why}")

    _refusals.impl(op, refuse, "CUDA")


def add_op_namespace_prefix(op_name: str) -> str:
    """The op's name for torch.library."""
    return f"diffattn::{op_name}"


_import_cpu()
ops: Ops = torch.ops.diffattn  # type: ignore[assignment]

missing_cuda = _import_cuda()
_refusals = torch.library.Library("diffattn", "IMPL")
if missing_cuda:
    for _op in ("fwd", "bwd", "decode", "components", "bwd_partial", "decode_components"):
        _refuse_cuda(_op, missing_cuda)
