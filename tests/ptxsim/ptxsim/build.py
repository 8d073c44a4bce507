"""Builds the engine: libptxsim_engine (with the CUDA runtime stand-in) and the Python module _ptxsim.

`python -m ptxsim.build` builds; importing ptxsim builds on demand. Objects are compiled incrementally in one folder; what
is linked goes to a folder named after a hash of the sources, the compiler and the flags, so that a changed source never
meets an old binary and a running process keeps its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "engine"
NAMES = ENGINE / "runtime_names.txt"  # the functions of the CUDA runtime
PYTHON_FILES = {"module.cpp", "runtime_python.cpp"}  # what needs pybind11; the rest is the engine proper


def build_root() -> Path:
    return Path(os.environ.get("PTXSIM_BUILD_DIR", ROOT / "build"))


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def flags() -> list[str]:
    # -ffp-contract=off: a PTX mul followed by add must not become an fma. Without -march=native there is no AVX2.
    return ["-std=c++17", "-O3", "-march=native", "-fPIC", "-fvisibility=default", "-ffp-contract=off", "-fno-math-errno",
            "-fno-trapping-math", "-Wall", "-Wextra", "-pthread"]  # fmt: skip


def sources() -> list[Path]:
    return sorted(ENGINE.glob("*.cpp"))


def fingerprint() -> str:
    digest = hashlib.sha256()
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    cpu = Path("/proc/cpuinfo")
    native = next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "") if cpu.exists() else ""
    for text in (version, native, " ".join(flags()), sys.version):
        digest.update(text.encode())
    for path in [*sorted(ENGINE.glob("*")), Path(__file__)]:  # this file writes a source too
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
        if found is None:
            raise RuntimeError("ptxsim needs ninja and pybind11 to build its engine: pip install ninja pybind11") from None
        return found


def runtime_names() -> list[str]:
    lines = NAMES.read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def _write_refusals(folder: Path) -> None:
    """What the engine's sources do not define of the CUDA runtime: without it such calls would reach a real runtime that
    happens to be in the process. The definitions are weak, so those in the sources win. The variants of a function
    for per-thread default streams are the function itself, because streams are a formality here."""
    variants = {name: name.removesuffix("_ptsz").removesuffix("_ptds") for name in runtime_names() if name.endswith(("_ptsz", "_ptds"))}
    stubs = ['#include "runtime.h"', 'extern "C" {']
    for name in runtime_names():
        if name not in variants:
            stubs.append(f'[[gnu::weak]] int {name}() {{ return ptxsim::Runtime::instance().refuse("{name}"); }}')
    _write_if_changed(folder / "refusals.cpp", "\n".join([*stubs, "}"]) + "\n")
    _write_if_changed(folder / "variants.ld", "".join(f"{name} = {base};\n" for name, base in variants.items()))


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _write_ninja(folder: Path) -> None:
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    python = f"-I{pybind11.get_include()} -I{sysconfig.get_paths()['include']}"
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join(flags())}",
        "rule cc",
        "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = $cxx -shared -pthread $in -o $out $extra",
    ]
    engine, module = [], []
    for path in sources():
        is_python = path.name in PYTHON_FILES
        (module if is_python else engine).append(f"{path.stem}.o")
        lines.append(f"build {path.stem}.o: cc {path}")
        lines.append(f"  extra = {python if is_python else ''}")
    lines += ["build refusals.o: cc refusals.cpp", f"  extra = -I{ENGINE}"]
    lines.append(f"build libptxsim_engine.so: link {' '.join(engine)} refusals.o variants.ld")
    lines.append("  extra = -Wl,-soname,libptxsim_engine.so")
    lines.append(f"build _ptxsim{suffix}: link {' '.join(module)} | libptxsim_engine.so")
    lines.append("  extra = -L. -lptxsim_engine -Wl,-rpath,'$$ORIGIN'")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def build(verbose: bool = False) -> Path:
    """Returns the folder that holds the built engine, building it if needed."""
    root = build_root()
    folder = root / f"engine-{fingerprint()}"
    if (folder / "done").exists():
        return folder
    objects = root / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes may want it at once
        if (folder / "done").exists():
            return folder
        _write_refusals(objects)
        _write_ninja(objects)
        jobs = os.environ.get("MAX_JOBS", "2")
        result = subprocess.run([_ninja(), "-C", str(objects), "-j", jobs], capture_output=not verbose, text=True)
        if result.returncode:
            raise RuntimeError(f"the engine does not build:\n{result.stdout or ''}{result.stderr or ''}")
        folder.mkdir(exist_ok=True)
        for path in objects.glob("*.so"):
            shutil.copy2(path, folder)
        (folder / "done").touch()
    return folder


if __name__ == "__main__":
    print(build(verbose=True))
