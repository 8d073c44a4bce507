"""Host libraries: nvcc's objects linked against the engine's CUDA runtime, so that their launches run here."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ._engine import folder, native
from .device import raise_pending
from .errors import Unsupported
from .module import cached, kernel_resources, preprocessed, require_nvcc, run_tool

native.set_probe(kernel_resources)

NVCC_FLAGS = ["--cudart", "none", "--no-compress", "-lineinfo", "-Xcompiler", "-fPIC"]


def compile_object(source: str | os.PathLike[str], arch: str = "80", flags: Sequence[str] = ()) -> Path:
    """A .cu file as an object with its PTX embedded in clear."""
    nvcc, path = require_nvcc(), Path(source).resolve()
    options = ["-gencode", f"arch=compute_{arch},code=compute_{arch}", *NVCC_FLAGS, *flags]
    seen = preprocessed(nvcc, path, options)
    return cached("object", [*options, seen], ".o", lambda out: run_tool([nvcc, "-c", *options, path, "-o", out]))


class Library:
    """A shared object of host and device code. Its functions are called as ctypes functions; a kernel's error is raised after."""

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]] | str,
        arch: str = "80",
        flags: Sequence[str] = (),
        link: Sequence[str] = (),
    ) -> None:
        files = [files] if isinstance(files, (str, os.PathLike)) else list(files)
        objects = [compile_object(f, arch, flags) if str(f).endswith(".cu") else Path(f) for f in files]
        key = [str(folder), *map(str, link), *(o.read_bytes() for o in objects)]
        self.path = cached("library", key, ".so", lambda out: link_library(objects, out, link))
        # DEEPBIND: a real CUDA runtime in this process must not take these calls.
        self._library = ctypes.CDLL(str(self.path), mode=os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND)
        self._functions: dict[str, HostFunction] = {}
        raise_pending()  # what went wrong while it registered its kernels

    def __getattr__(self, name: str) -> HostFunction:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._functions:
            self._functions[name] = HostFunction(getattr(self._library, name))
        return self._functions[name]


def on_ptx(change: Callable[[str], str]) -> None:
    """Has `change` see the PTX of each host library when it is first needed; what it returns is what runs: a mutant, say."""
    native.set_on_ptx(change)


def link_library(objects: Sequence[Path], out: Path, extra: Sequence[str] = ()) -> None:
    """Links objects with the stand-in runtime; torch extensions may use it with their own libraries in `extra`."""
    run_tool(["g++", "-shared", *map(str, objects), "-o", str(out), f"-L{folder}", "-lptxsim_engine", f"-Wl,-rpath,{folder}", *extra])
    refuse_unknown_calls(out)


CUDA_CALL = re.compile(r"\b((?:__)?cuda[A-Z]\w*|cu[A-Z]\w*)(?:@\S*)?$")


def refuse_unknown_calls(path: Path) -> None:
    """Calls into CUDA that the engine does not define, not even to refuse them, would reach a real runtime or driver."""
    called = {match[1] for line in run_tool(["nm", "-D", "--undefined-only", path]).splitlines() if (match := CUDA_CALL.search(line))}
    supplied = run_tool(["nm", "-D", "--defined-only", folder / "libptxsim_engine.so"]).split()
    if unknown := sorted(called - set(supplied)):
        raise Unsupported(f"Host code calls {', '.join(unknown)}, which the stand-in of the CUDA runtime does not have.")


class HostFunction:
    """A ctypes function that raises what went wrong in the kernels it launched."""

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        result = self._function(*args)
        raise_pending()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._function, name, value)
