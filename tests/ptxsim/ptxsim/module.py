"""PTX modules and kernels, and nvcc in front of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._engine import native
from .build import build_root


class Kernel:
    """One entry of a module. Decoded when it is first used."""

    def __init__(self, module: Module, name: str) -> None:
        self.module = module
        self.name = name
        self._program: Any = None

    @property
    def program(self) -> Any:
        if self._program is None:
            self._program = self.module.native.decode(self.name)
        return self._program

    @property
    def registers(self) -> int:
        """Registers a thread, as ptxas says; 0 while unknown."""
        return self.program.registers

    @property
    def spill_bytes(self) -> int:
        return self.program.spill_bytes

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"


class Module:
    def __init__(self, text: str) -> None:
        self.native = native.parse(text)
        self.text = text
        self.kernels: list[str] = self.native.kernels
        self._by_name: dict[str, Kernel] = {}

    def kernel(self, part: str) -> Kernel:
        """The only kernel whose mangled or demangled name contains `part`."""
        names = [part] if part in self.kernels else [n for n in self.kernels if part in n]
        if not names:
            names = [n for n, plain in zip(self.kernels, demangle(self.kernels), strict=True) if part in plain]
        if len(names) != 1:
            raise KeyError(f"{part!r} names {len(names)} kernels of {self.kernels}")
        return self._by_name.setdefault(names[0], Kernel(self, names[0]))

    def variable(self, name: str) -> tuple[int, int]:
        """Address and size of a module variable (__device__ or __constant__)."""
        return self.native.variable(name)


def demangle(names: Sequence[str]) -> list[str]:
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return list(names)
    return subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout.splitlines()


def load_ptx(source: str | os.PathLike[str]) -> Module:
    """A module from PTX text, or from a file that holds it."""
    text = str(source)
    if "\n" not in text and Path(text).is_file():
        text = Path(text).read_text()
    return Module(text)


def set_smem_limit(kernel: Kernel, nbytes: int) -> None:
    """cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, nbytes)."""
    kernel.program.max_dynamic_shared = nbytes


def find_nvcc() -> str | None:
    """nvcc from PATH, CUDA_HOME or the wheels of PyPI; None without any."""
    found = shutil.which("nvcc")
    if found:
        return found
    homes = [os.environ.get(key) for key in ("CUDA_HOME", "CUDA_PATH")]
    site = [Path(sysconfig.get_paths()[key]) / "nvidia" for key in ("purelib", "platlib")]
    candidates = [Path(home) / "bin/nvcc" for home in homes if home]
    for folder in site:
        candidates += [folder / "cuda_nvcc/bin/nvcc", *sorted(folder.glob("cu*/bin/nvcc"))]
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((str(path) for path in candidates if path.exists()), None)


def require_nvcc() -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc: neither on PATH, nor in CUDA_HOME, nor PyPI's nvidia-cuda-nvcc")
    return nvcc


def cached(kind: str, key: Sequence[str | bytes], suffix: str, make: Any) -> Path:
    """The file `make(path)` writes, kept under a hash of what it was made from."""
    digest = hashlib.sha256(b"\0".join(k if isinstance(k, bytes) else k.encode() for k in key)).hexdigest()[:24]
    path = build_root() / kind / f"{digest}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=suffix)
        os.close(handle)
        try:
            make(Path(temporary))
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    return path


def run_tool(command: Sequence[str]) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def preprocessed(nvcc: str, source: Path, flags: Sequence[str]) -> bytes:
    """What the compiler will see, headers included: the cache key of a compilation."""
    result = subprocess.run([nvcc, "-E", *flags, str(source)], capture_output=True)
    if result.returncode:
        raise RuntimeError(f"{source} does not compile:\n{result.stderr.decode()}")
    return result.stdout


def source_file(path_or_source: str | os.PathLike[str]) -> Path:
    text = str(path_or_source)
    if "\n" not in text and Path(text).is_file():
        return Path(text).resolve()
    return cached("source", [text], ".cu", lambda out: out.write_text(text))


def compile_cu(path_or_source: str | os.PathLike[str], arch: str = "sm_80", flags: Sequence[str] = ()) -> Module:
    """Compiles CUDA to PTX with -lineinfo."""
    nvcc, source = require_nvcc(), source_file(path_or_source)
    options = [f"-arch={arch}", "-lineinfo", *flags]
    try:
        seen = preprocessed(nvcc, source, options)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(error.stderr.decode()) from None
    ptx = cached("ptx", [*options, seen], ".ptx", lambda out: run_tool([nvcc, "-ptx", *options, source, "-o", out]))
    return load_ptx(ptx)


def ptxas_resources(text: str, arch: str) -> dict[str, dict[str, int]]:
    """Registers and spills of every kernel, from ptxas -v."""
    nvcc = find_nvcc()
    ptxas = shutil.which("ptxas") or (str(Path(nvcc).parent / "ptxas") if nvcc else None)
    if ptxas is None or not Path(ptxas).exists():
        return {}

    def assemble(out: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
            ptx.write(text)
            ptx.flush()
            log = run_tool([ptxas, "-v", f"-arch={arch}", ptx.name, "-o", os.devnull])
        out.write_text(json.dumps(parse_ptxas(log)))

    try:
        return json.loads(cached("ptxas", [arch, text], ".json", assemble).read_text())
    except RuntimeError:
        return {}  # PTX for another architecture family, or hand-written PTX ptxas refuses: the limit goes unchecked


_build_logs: dict[tuple[str, int], dict[str, int]] = {}


def use_ptxas_log(log: str) -> None:
    """What ptxas -v said when the kernels were built: spares asking it again for each of them."""
    for part in re.split(r"(?=Compiling entry function)", log):
        if match := re.search(r"for 'sm_(\d+)", part):
            _build_logs.update({(name, int(match[1])): found for name, found in parse_ptxas(part).items()})


def resources_of_build(name: str, arch: str) -> dict[str, int] | None:
    """Of the newest architecture that the device can run."""
    runs = [(built, found) for (kernel, built), found in _build_logs.items() if kernel == name and built <= int(arch[3:])]
    return max(runs, key=lambda run: run[0])[1] if runs else None


def parse_ptxas(log: str) -> dict[str, dict[str, int]]:
    kernels: dict[str, dict[str, int]] = {}
    current = None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", line):
            current = kernels.setdefault(match[1], {"registers": 0, "spill_bytes": 0})
        elif current is not None and (match := re.search(r"(\d+) bytes spill stores", line)):
            current["spill_bytes"] = int(match[1])
        elif current is not None and (match := re.search(r"Used (\d+) registers", line)):
            current["registers"] = int(match[1])
    return kernels


def end_of_body(text: str, at: int) -> int:
    """Behind the brace that closes the first one after `at`; inline assembly has braces of its own, at a line's start too."""
    depth = 0
    for brace in re.compile("[{}]").finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return len(text)


def one_kernel_text(text: str, name: str) -> str:
    """The module without its other entries: ptxas then spends its minutes on one kernel."""
    header = re.compile(r"^(?:\.visible |\.weak )*\.entry ([\w$]+)\s*\(", re.M)
    out, at = [], 0
    for match in header.finditer(text):
        if match[1] == name or match.start() < at:
            continue
        out.append(text[at : match.start()])
        at = end_of_body(text, match.end())
    return "".join(out) + text[at:]


def probe_resources(kernel: Kernel, arch: str) -> None:
    program = kernel.program
    if program.registers == 0:
        found = kernel_resources(kernel.module.text, kernel.name, arch)
        program.registers, program.spill_bytes = found


def kernel_resources(text: str, name: str, arch: str) -> tuple[int, int]:
    if os.environ.get("PTXSIM_PTXAS", "1") == "0":
        return 1, 0
    target = re.search(r"^\.target\s+(sm_\d+[af])\b", text, re.M)
    exact = target[1] if target and target[1][:-1] == arch else arch  # code for sm_90a is not assembled for sm_90
    found = resources_of_build(name, arch) or ptxas_resources(one_kernel_text(text, name), exact).get(name)
    return (found["registers"], found["spill_bytes"]) if found else (1, 0)
