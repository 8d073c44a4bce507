"""Builds tests/support/sim_binding.cpp over the kernels that ship, and loads it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "tests" / "support" / "sim_binding.cpp"
sys.path += [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests" / "ptxsim")]

import build_cuda  # noqa: E402

# Separate projects, of which a type checker need not know.
ptxsim: Any = importlib.import_module("ptxsim")
_module: Any = importlib.import_module("ptxsim.module")


def kernel_objects() -> list[Path]:
    found = [build_cuda.object_of(source) for source in build_cuda.sources()]
    missing = [path for path in found if not path.exists()]
    if missing:
        raise FileNotFoundError(f"no {missing[0]}: build the CUDA module first (make build)")
    return found


def load_binding() -> ModuleType:
    """The twin of the CUDA binding; the simulator knows each kernel's registers from the build."""
    objects = kernel_objects()
    for source in build_cuda.sources():
        ptxsim.use_ptxas_log(build_cuda.log_of(source).read_text())
    return _import(_linked([_compiled(), *objects]))


def _compiled() -> Path:
    import pybind11

    folders = [pybind11.get_include(), sysconfig.get_paths()["include"], *include_paths()]
    flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden",
             "-DTORCH_TARGET_VERSION=0x020A000000000000",
             *(f"-isystem{folder}" for folder in folders)]  # fmt: skip
    seen = _module.run_tool(["g++", "-E", *flags, SOURCE])
    return _module.cached(
        "sim_binding",
        [*flags, seen],
        ".o",
        lambda out: _module.run_tool(["g++", "-c", *flags, "-Wall", "-Wextra", SOURCE, "-o", out]),
    )


def _linked(objects: list[Path]) -> Path:
    torch_libraries = [*(f"-L{folder}" for folder in library_paths()), "-ltorch", "-ltorch_cpu",
                       "-lc10"]  # fmt: skip
    return _module.cached(
        "sim_binding",
        [str(ptxsim.engine_folder), *(path.read_bytes() for path in objects)],
        ".so",
        lambda out: ptxsim.link_library(objects, out, torch_libraries),
    )


def _import(path: Path) -> ModuleType:
    """DEEPBIND: torch has a real CUDA runtime in this process, which must not take the calls."""
    spec = importlib.util.spec_from_file_location("sim_binding", path)
    assert spec is not None and spec.loader is not None
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.setdlopenflags(before)
    return module
