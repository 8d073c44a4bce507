"""Native code of diffattn_cuda; everything else about the package is in pyproject.toml.

The extensions use torch's stable ABI and the limited Python API, so that one wheel serves every
later torch and Python. They are built with the torch that is installed:
`pip install --no-build-isolation .`
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
import build_checks  # noqa: E402

build_checks.check()
import build_cuda  # noqa: E402
import build_manylinux  # noqa: E402
from build_cpu import ISA_FLAGS  # noqa: E402
from setuptools import Extension, setup  # noqa: E402
from setuptools.modified import newer_group  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths  # noqa: E402

PYTHON_API = "0x030A0000"  # Python 3.10
TORCH_API = "0x020A000000000000"  # torch 2.10, the first stable ABI with parallel_for
FLAGS = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0"]
EXPORTS = "csrc/bindings/exports.map"
LINK = ["-pthread", f"-Wl,--version-script={EXPORTS}"]
# The namespace of torch.ops, as in diffattn_cuda/_ops.py.
OPS: dict[str, str | None] = {"DIFFATTN_OPS": "diffattn"}
if os.environ.get("DIFFATTN_SANITIZE") == "1":  # for `make sanitize`, in a build folder of its own
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    LINK += sanitizers
    # The last of two levels counts; Python's own flags make signed overflow wrap, unseen.
    FLAGS += [*sanitizers, "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv"]


def files(folder: str, pattern: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).glob(pattern))]


class Build(BuildExtension):
    """Torch's build, after the files that need a compiler or flags of their own.

    Those are compiled when one of their inputs has changed. Torch forces everything, and ninja then
    skips what is current.
    """

    def build_extensions(self) -> None:
        by_name = {extension.name: extension for extension in self.extensions}
        jobs: list[tuple[Extension, Callable[[], str]]] = [
            (by_name["diffattn_cuda._cpu"], partial(self.compile_for, name)) for name in ISA_FLAGS
        ]
        if cuda := by_name.get("diffattn_cuda._cuda"):
            toolkit = build_cuda.Toolkit()
            jobs += [(cuda, partial(toolkit.compile, path)) for path in build_cuda.sources()]
            cuda.extra_link_args.append(toolkit.runtime())
        with ThreadPool(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = pool.map(lambda job: job[1](), jobs, chunksize=1)
        for (extension, _), path in zip(jobs, objects, strict=True):
            extension.extra_objects.append(path)
            extension.depends.append(path)
        if build_manylinux.wanted():
            self.link_for_old_systems()
        super().build_extensions()

    def link_for_old_systems(self) -> None:
        linker = build_manylinux.linker()
        runtime = build_manylinux.runtime(self.compiler.compiler_cxx[0])
        for extension in self.extensions:
            extension.extra_link_args += runtime
        link = self.compiler.link

        def with_zig(*args: Any, **kwargs: Any) -> None:
            # Not earlier, because torch asks the compiler for its version. setuptools takes the
            # linker's first word from the compiler.
            self.compiler.set_executables(compiler_cxx=linker[:1], linker_so_cxx=linker)
            link(*args, **kwargs)

        self.compiler.link = with_zig

    def compile_for(self, name: str) -> str:
        source = f"csrc/cpu/{name}"
        target = (Path(self.build_temp) / source).with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        apart = ("csrc/cuda", "csrc/bindings")  # the CPU backend includes nothing of these
        headers = [path for path in files("csrc", "**/*.h") if not path.startswith(apart)]
        inputs = [source, "setup.py", "tools/build_cpu.py", *headers]
        if newer_group(inputs, str(target), missing="newer"):
            compiler = self.compiler.compiler_so_cxx
            self.spawn([*compiler, *FLAGS, *ISA_FLAGS[name], "-c", source, "-o", str(target)])
        return str(target)


def module(
    name: str, sources: list[str], macros: dict[str, str | None], link: list[str]
) -> Extension:
    return CppExtension(
        f"diffattn_cuda.{name}",
        sources,
        depends=[*files("csrc", "**/*.h"), EXPORTS],
        py_limited_api=True,
        define_macros=[
            ("Py_LIMITED_API", PYTHON_API),
            ("TORCH_TARGET_VERSION", TORCH_API),
            *macros.items(),
        ],  # fmt: skip
        # Torch's headers would warn under our flags.
        extra_compile_args=[*FLAGS, *(f"-isystem{path}" for path in include_paths())],
        extra_link_args=link,
    )


for_old_systems = ["csrc/bindings/single_threaded.cpp"]
bindings = files("csrc/bindings", "*.cpp")
cuda_bindings = files("csrc/bindings", "cuda*.cpp")
cpu_bindings = sorted({*bindings} - {*cuda_bindings, *for_old_systems})
cpu_sources = ["csrc/cpu/dispatch.cpp", "csrc/cpu/memory.cpp"]
if build_manylinux.wanted():
    cpu_bindings += for_old_systems
    cuda_bindings += for_old_systems
modules = [module("_cpu", [*cpu_sources, *cpu_bindings], OPS, LINK)]
if build_cuda.wanted():
    # libtorch.so brings in torch's CUDA library where there is one, and nothing else refers to it.
    link = ["-Wl,--no-as-needed", "-ltorch", *LINK, "-ldl", "-lrt"]
    architectures = ";".join(build_cuda.compiled())
    macros = OPS | {"USE_CUDA": None, "DIFFATTN_ARCHITECTURES": f'"{architectures}"'}
    modules.append(module("_cuda", cuda_bindings, macros, link))

options = {"bdist_wheel": {"py_limited_api": "cp310"}}
if not os.access(ROOT, os.W_OK):  # then nothing is kept for the next build
    outside = tempfile.mkdtemp(prefix="diffattn_cuda-build-")
    options |= {"build": {"build_base": outside}, "egg_info": {"egg_base": outside}}
    build_cuda.OBJECTS = Path(outside) / "cuda"

setup(ext_modules=modules, cmdclass={"build_ext": Build}, options=options)
