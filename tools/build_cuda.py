"""The CUDA half of the build: nvcc makes objects of csrc/cuda, which `diffattn_cuda._cuda` links.

The kernels are free of torch, so any nvcc serves any torch, and no GPU is needed. The source tree
decides what is built: every file below csrc/cuda has its object at the same path below build/cuda.
Next to each object lies a log with its command, ptxas' report, its compile time and its size.
Objects stay valid for the next wheel or editable install.

A folder smNN holds the kernels of one architecture. Those of sm80 are compiled for every compute
capability that is asked for; if none is, for the oldest, because later devices compile its PTX. A
newer folder is compiled when its own capability is asked for, or none, with the instructions that
only this architecture has (sm_90a). Kernels outside such folders are compiled for each
architecture that has one.

    DIFFATTN_CUDA        0: without CUDA; 1: with it, or fail; unset: with it where nvcc and
                         CUTLASS's headers are found
    DIFFATTN_CUDA_ARCHS  compute capabilities, "80" or "80;90": SASS and PTX for each;
                         default: that of every folder smNN, and only its own files for each
    CUDA_HOME            where nvcc is looked for first; then PATH, PyPI's packages, /usr/local/cuda
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

from setuptools.errors import CompileError
from setuptools.modified import newer_group

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
OBJECTS = ROOT / "build" / "cuda"
OLDEST = 80  # cp.async and mma with bf16

# PTX stays legible in the objects, because the simulator runs the objects that ship.
# -ftz: exp2f becomes the one instruction that it is in hardware.
FLAGS = ["-O3", "-std=c++17", "--no-compress", "-Xptxas", "-v", "-Werror", "all-warnings",
         "-ftz=true", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Werror"]  # fmt: skip

HOW_TO_GET_NVCC = (
    "set CUDA_HOME to a CUDA toolkit, put nvcc on PATH, or pip install nvidia-cuda-nvcc "
    "nvidia-nvvm nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime; DIFFATTN_CUDA=0 builds "
    "without CUDA"
)


def site_folders(pattern: str) -> list[Path]:
    """Folders of NVIDIA's packages from PyPI, newest CUDA first."""
    roots = {Path(sysconfig.get_paths()[key]) / "nvidia" for key in ("purelib", "platlib")}
    return [path for root in roots for path in sorted(root.glob(pattern), reverse=True)]


def find_nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    first = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = [Path(found) for found in [shutil.which("nvcc")] if found]
    last = [*site_folders("cu*/bin/nvcc"), Path("/usr/local/cuda/bin/nvcc")]
    return next((str(path) for path in [*first, *on_path, *last] if path.is_file()), None)


def wanted() -> bool:
    """Whether this build has a CUDA module."""
    choice = os.environ.get("DIFFATTN_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"DIFFATTN_CUDA is {choice!r}, accepted: 0, 1 or unset")
    if choice == "1" and find_nvcc() is None:
        raise SystemExit(f"DIFFATTN_CUDA=1, but there is no nvcc: {HOW_TO_GET_NVCC}")
    if choice == "0" or find_nvcc() is None:
        return False
    if choice == "" and find_cutlass() is None:
        print(f"diffattn_cuda: WITHOUT CUDA, although there is an nvcc: {_how_to_get_cutlass()}")
        return False
    return True


def find_cutlass() -> Path | None:
    """The folder of the headers that PyPI's nvidia-cutlass brings."""
    package = importlib.util.find_spec("cutlass_library")
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "source" / "include"


def _how_to_get_cutlass() -> str:
    """Only pyproject.toml has the version, where pip reads what a build needs."""
    pin = re.search(r"nvidia-cutlass==[\d.]+", (ROOT / "pyproject.toml").read_text())
    assert pin, "pyproject.toml does not pin nvidia-cutlass"
    return f"no CUTLASS headers: pip install --no-deps {pin[0]}"


def architectures() -> list[str]:
    """The requested compute capabilities; Toolkit refuses those that nvcc does not know."""
    text = os.environ.get("DIFFATTN_CUDA_ARCHS") or ";".join(map(str, _folders()))
    return [part.strip() for part in text.split(";")]


def for_all() -> list[str]:
    """Those for which the oldest folder is compiled, which has all kernels."""
    return architectures() if os.environ.get("DIFFATTN_CUDA_ARCHS") else [str(OLDEST)]


def compiled() -> list[str]:
    """As 80 where all kernels are compiled, as 90a where an architecture has some of its own."""
    newer = sorted({architecture_of(source) for source in sources()} - {OLDEST})
    return [*for_all(), *(f"{number}a" for number in newer)]


def architecture_of(source: Path) -> int:
    """The compute capability of the folder smNN that a file lies in; elsewhere the oldest."""
    return _folder_of(source) or OLDEST


def _folder_of(source: Path) -> int | None:
    """NN of the folder smNN that a file lies in."""
    parts = source.relative_to(SOURCES).parts[:-1]
    numbers = [int(part[2:]) for part in parts if re.fullmatch(r"sm\d+", part)]
    return numbers[0] if numbers else None


def sources() -> list[Path]:
    """The files of this build: a newer architecture's only where its capability is asked for."""
    asked = {str(OLDEST), *architectures()}
    return [path for path in every_source() if str(architecture_of(path)) in asked]


def every_source() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cu", ".cpp"))


def _folders() -> list[int]:
    return sorted({OLDEST, *map(architecture_of, every_source())})


def object_of(source: Path) -> Path:
    return OBJECTS / source.relative_to(SOURCES).with_suffix(".o")


def log_of(source: Path) -> Path:
    """The log of its compilation: the command, ptxas' report, time and size."""
    return object_of(source).with_suffix(".o.log")


def kernels_of(source: Path) -> dict[str, str]:
    """What ptxas said of each kernel of a file, by mangled name, for the oldest architecture."""
    log = log_of(source)
    if not log.exists():
        raise SystemExit(f"no {log}: make build")
    parts = log.read_text().split("Compiling entry function '")[1:]
    oldest_last = sorted(parts, key=lambda part: part.split("'")[2], reverse=True)
    return {part.split("'")[0]: part for part in oldest_last}


def find_kernel(*parts: str, architecture: int = OLDEST) -> tuple[Path, str]:
    """The file and the mangled name of the one kernel of an architecture that has these parts."""
    found = [
        (source, name)
        for source in sources()
        if architecture_of(source) == architecture
        for name in kernels_of(source)
        if all(part in name for part in parts)
    ]
    if len(found) != 1:
        names = ", ".join(name for _, name in found) or "none"
        raise SystemExit(f"kernels of sm_{architecture} with {' and '.join(parts)} in their names: "
                         f"{names}; expected one: make build")  # fmt: skip
    return found[0]


class Toolkit:
    """nvcc, the headers of CUTLASS and the static CUDA runtime."""

    def __init__(self) -> None:
        found = find_nvcc()
        if found is None:
            raise SystemExit(f"no nvcc: {HOW_TO_GET_NVCC}")
        self.nvcc = found
        self._check_architectures()
        self._headers = self._includes()

    def flags_of(self, source: Path) -> list[str]:
        folder = _folder_of(source)
        names = for_all() if folder == OLDEST else [f"{folder}a"] if folder else architectures()
        targets = [f"-gencode=arch=compute_{n},code=[sm_{n},compute_{n}]" for n in names]
        return [*FLAGS, *targets, *self._headers]

    def compile(self, source: Path) -> str:
        """The object of one file, compiled again if one of its inputs has changed."""
        target, log = object_of(source), log_of(source)
        depfile = target.with_suffix(".o.d")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [self.nvcc, *self.flags_of(source), "-MD", "-MF", str(depfile), "-c", str(source),
                   "-o", str(target)]  # fmt: skip
        if not _is_current(target, log, depfile, command):
            _compile(command, source, target, log)
        return str(target)

    def runtime(self) -> str:
        """libcudart_static.a: where the wheel runs, it needs nothing of CUDA except the driver."""
        home = self._home()
        folders = [home / "lib64", home / "lib", *home.glob("targets/*/lib")]
        folders += site_folders("cu*/lib") + site_folders("cuda_runtime/lib")
        for folder in folders:
            if (folder / "libcudart_static.a").is_file():
                return str(folder / "libcudart_static.a")
        raise SystemExit(
            f"no libcudart_static.a in {home} or PyPI's packages: pip install nvidia-cuda-runtime"
        )

    def _home(self) -> Path:
        """nvcc on PATH may be a script or a link, so nvcc itself says where its toolkit is."""
        report = self._ask("--dryrun", "-x", "cu", os.devnull)
        return Path(re.findall(r"^#\$ TOP=(.*)$", report, re.M)[0]).resolve()

    def _check_architectures(self) -> None:
        known = re.findall(r"compute_(\d+)", self._ask("--list-gpu-arch"))
        accepted = [number for number in known if int(number) >= OLDEST]
        listed = architectures()
        if not set(listed) <= set(accepted):
            raise SystemExit(
                f"DIFFATTN_CUDA_ARCHS is {';'.join(listed)!r}, accepted: one or more, joined by "
                f"';', of what {self.nvcc} knows from sm_{OLDEST} on: {', '.join(accepted)}"
            )

    def _includes(self) -> list[str]:
        headers = find_cutlass()
        if headers is None:
            raise SystemExit(f"{_how_to_get_cutlass()}; DIFFATTN_CUDA=0 builds without CUDA")
        return ["-isystem", str(headers)]

    def _ask(self, *options: str) -> str:
        done = subprocess.run([self.nvcc, *options], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


def _is_current(target: Path, log: Path, depfile: Path, command: list[str]) -> bool:
    if not (target.exists() and log.exists() and depfile.exists()):
        return False
    if log.read_text().splitlines()[0] != shlex.join(command):
        return False
    inputs = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return not newer_group(inputs, str(target), missing="newer")


def _compile(command: list[str], source: Path, target: Path, log: Path) -> None:
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    report = done.stdout + done.stderr
    if done.returncode:
        log.unlink(missing_ok=True)
        raise CompileError(f"{shlex.join(command)}\n{report}")
    cost = f"{seconds:.1f} s, {target.stat().st_size / 1e6:.2f} MB"
    log.write_text(f"{shlex.join(command)}\n{report}compiled in {cost}\n")
    print(f"{source.relative_to(ROOT)}: {cost}", flush=True)
