"""Assembles a project for Hugging Face's kernel hub: `python tools/hub.py FOLDER`, or `make hub`.

kernel-builder reads a fixed layout: build.toml and flake.nix at the root, the Python package in
torch-ext/, and real files only, because Nix leaves links out. The package and csrc/ have their own
places here, so the project is written, to build/hub, and never by hand. In that folder:

    nix run .#build-and-copy          # what the hub serves, for every torch and CUDA
    nix run .#ci-test                 # tests/, those marked kernels_ci

The ops of each build have a namespace of their own, so that two builds can live in one process: in
C++ the macro DIFFATTN_OPS, in Python the file _ops.py, which kernel-builder writes.

The hub asks for syntax that Python 3.9 reads. What only the hub has keeps to it; the package does
not, because its torch, 2.10 or later, exists for no Python before 3.10.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_cpu
import build_cuda

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, HUB = ROOT / "diffattn_cuda", ROOT / "hub"
TORCH_ABI = "2.10"
# The hub takes torch and the standard library alone; the self-test checks an installed package.
LEFT_OUT = ("_ops.py", "__main__.py", "hf.py", "_hf_attention.py", "_hf_mask.py", "*.so", "*.pyi",
            "selftest", "__pycache__")  # fmt: skip
LAYERS = """
from . import layers, nn, reference  # noqa: E402

__all__ += ["layers", "nn", "reference"]
"""


def assemble(folder: Path) -> None:
    """The whole project, in a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "torch-ext" / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns(*LEFT_OUT))
    with (package / "__init__.py").open("a") as file:
        file.write(LAYERS)
    (package / "layers").mkdir()
    text = (HUB / "layers.py").read_text()
    (package / "layers" / "__init__.py").write_text(
        re.sub(r"^from \.", "from ..", text, flags=re.M)
    )
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    write_binding(folder)
    (folder / "tests").mkdir()
    shutil.copy(HUB / "test_kernel.py", folder / "tests" / "test_diffattn_cuda.py")
    for name in ("flake.nix", "CARD.md"):
        shutil.copy(HUB / name, folder)
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / "build.toml").write_text(build_toml())


def write_binding(folder: Path) -> None:
    """CMake would compile a listed .cpp by itself; what torch_binding.cpp includes ends in .inc."""
    text = (HUB / "torch_binding.cpp").read_text()
    for name in included_bindings():
        (folder / name).rename(folder / f"{name}.inc")
    text = text.replace('.cpp"\n', '.cpp.inc"\n')
    (folder / "torch-ext" / "torch_binding.cpp").write_text(text)


def included_bindings() -> list[str]:
    text = (HUB / "torch_binding.cpp").read_text()
    return re.findall(r'^#include "\.\./(csrc/bindings/\w+\.cpp)"', text, re.M)


def build_toml() -> str:
    """One section for each set of compiler flags, because a section has one."""
    sections = [
        section("general", name='"diffattn-cuda"', version="0", edition="5",
                license='"bsd-3-clause"', backends=strings(["cpu", "cuda"])),
        section("torch", src=strings(["torch-ext/torch_binding.cpp", *bindings(),
                                      *host_headers()])),
        section("torch.stable-abi", cpu=f'"{TORCH_ABI}"', cuda=f'"{TORCH_ABI}"'),
        kernel("cpu", "cpu", ["csrc/cpu/dispatch.cpp", "csrc/cpu/memory.cpp"], host_headers()),
    ]  # fmt: skip
    for name, flags in build_cpu.X86_FLAGS.items():
        title = name.removesuffix(".cpp").replace("kernels", "cpu")
        sections.append(kernel(title, "cpu", [f"csrc/cpu/{name}"], host_headers(),
                               cxx_flags=strings([*COMMON, *flags])))  # fmt: skip
    for number in sorted({build_cuda.architecture_of(path) for path in build_cuda.every_source()}):
        sections.append(cuda_kernel(number))
    return "\n\n".join(sections) + "\n"


COMMON = ["-O3", "-fvisibility=hidden"]


def cuda_kernel(number: int) -> str:
    """A folder smNN; what lies outside such folders goes with the oldest."""
    mine = [
        path for path in build_cuda.every_source() if build_cuda.architecture_of(path) == number
    ]
    oldest = number == build_cuda.OLDEST
    capabilities = ["8.0+PTX", "9.0", "10.0", "12.0"] if oldest else [f"{number / 10:.1f}a"]
    return kernel(
        f"sm{number}", "cuda", [relative(path) for path in mine],
        [*host_headers(), *headers("csrc/cuda")], cuda_capabilities=strings(capabilities),
        cuda_flags=strings(["-O3", "-std=c++17", "-ftz=true"]), cxx_flags=strings(COMMON),
    )  # fmt: skip


def kernel(name: str, backend: str, sources: list[str], included: list[str], **options: str) -> str:
    depends = ["torch"] + (["cutlass_4_0"] if backend == "cuda" else [])
    return section(f"kernel.{name}", backend=f'"{backend}"', depends=strings(depends),
                   src=strings([*sources, *included]), **options)  # fmt: skip


def bindings() -> list[str]:
    """What torch_binding.cpp includes, and what that includes."""
    return [f"{name}.inc" for name in included_bindings()] + headers("csrc/bindings")


def host_headers() -> list[str]:
    return [relative(path) for path in sorted((ROOT / "csrc").glob("*.h"))] + headers("csrc/cpu")


def headers(folder: str) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*"))
    return [relative(path) for path in paths if path.suffix in (".h", ".cuh")]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def section(title: str, **values: str) -> str:
    lines = [f"{key.replace('_', '-')} = {value}" for key, value in values.items()]
    return "\n".join([f"[{title}]", *lines])


def strings(values: list[str]) -> str:
    """An array; long ones have a line per value."""
    quoted = [f'"{value}"' for value in values]
    if len(quoted) <= 6:
        return f"[{', '.join(quoted)}]"
    return "[\n" + "".join(f"    {value},\n" for value in quoted) + "]"


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
