"""Native code of diffattn_cuda; everything else about the package is in pyproject.toml.

The extensions use torch's stable ABI and the limited Python API, so that one wheel serves every
later torch and Python. They are built beside the torch that is installed:
`pip install --no-build-isolation .`
"""

from __future__ import annotations

import os
import platform
from multiprocessing.pool import ThreadPool
from pathlib import Path

from setuptools import setup
from setuptools.modified import newer_group
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).resolve().parent
PYTHON_API = "0x030A0000"  # Python 3.10
TORCH_API = "0x020A000000000000"  # torch 2.10, the first stable ABI with parallel_for
FLAGS = ["-O3", "-std=c++17", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0"]

# One file an instruction set; dispatch.cpp chooses at run time, so only these get such flags.
ISA_FLAGS = {
    "kernels_portable.cpp": [],
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
if platform.machine() not in ("x86_64", "AMD64"):
    ISA_FLAGS = {"kernels_portable.cpp": []}


def files(folder: str, pattern: str) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / folder).glob(pattern))]


class Build(BuildExtension):
    """Torch's build, after the files that need flags of their own, for it knows one set only."""

    def build_extensions(self) -> None:
        with ThreadPool(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = pool.map(self.compile_for, ISA_FLAGS)
        self.extensions[0].extra_objects.extend(objects)
        super().build_extensions()

    def compile_for(self, name: str) -> str:
        source = f"csrc/cpu/{name}"
        target = Path(self.build_temp) / f"{name}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        inputs = [source, "setup.py", *files("csrc", "*.h"), *files("csrc/cpu", "*.h")]
        if self.force or newer_group(inputs, str(target)):
            compiler = self.compiler.compiler_so_cxx
            self.spawn([*compiler, *FLAGS, *ISA_FLAGS[name], "-c", source, "-o", str(target)])
        return str(target)


cpu = CppExtension(
    "diffattn_cuda._cpu",
    ["csrc/cpu/dispatch.cpp", "csrc/cpu/memory.cpp", *files("csrc/bindings", "*.cpp")],
    depends=[*files("csrc", "*.h"), *files("csrc/bindings", "*.h"), *files("csrc/cpu", "*.h")],
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", PYTHON_API), ("TORCH_TARGET_VERSION", TORCH_API)],
    extra_compile_args=FLAGS,
)

setup(
    ext_modules=[cpu],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
