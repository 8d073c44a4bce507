"""What was built, on what it can run here, and which kernels serve each device."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__, _cpu, _ops

OLDEST = (8, 0)  # compute capability


@dataclass(frozen=True)
class Device:
    """Something that the checks can run on: an instruction set of the CPU, or a GPU."""

    name: str  # cpu:avx2, cuda:0
    kernels: str  # which of the built ones serve it, in words
    served: bool = True


def versions() -> dict[str, str]:
    return {
        "diffattn_cuda": __version__,
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda or "none",
        "Python": platform.python_version(),
        "package": str(Path(__file__).resolve().parent.parent),
    }


def built() -> dict[str, str]:
    """By backend, in words; of CUDA, why there is none."""
    missing = _ops.missing_cuda
    architectures = ", ".join(
        [*map(_dotted, cuda_architectures()), *map(_own, own_architectures())]
    )
    return {
        "CPU kernels": ", ".join(_cpu.instruction_sets()),
        "CUDA kernels": f"none: {missing}" if missing else f"compute capability {architectures}",
    }


def cuda_architectures() -> list[int]:
    """Compute capabilities, as 80 for 8.0; none where the module is not loaded."""
    return [int(part) for part in _compiled() if part.isdigit()]


def own_architectures() -> list[int]:
    """Those that have a forward of their own, which runs on no other."""
    return [int(part[:-1]) for part in _compiled() if not part.isdigit()]


def _compiled() -> list[str]:
    if _ops.missing_cuda:
        return []
    architectures: str = importlib.import_module("diffattn_cuda._cuda").architectures
    return architectures.split(";")


def devices() -> list[Device]:
    """In the order in which they are checked: what is used by default comes first."""
    return [*_gpus(), *_instruction_sets()]


def hardware() -> dict[str, str]:
    """By device: its name and size."""
    found = {"cpu": f"{_cpu_name()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        memory = p.total_memory / 2**30
        found[f"cuda:{i}"] = (
            f"{p.name}, compute capability {p.major}.{p.minor}, {memory:.0f} GiB, "
            f"{p.multi_processor_count} multiprocessors"
        )
    return found


def serving(
    capability: tuple[int, int], architectures: list[int], own: Sequence[int] = ()
) -> Device | str:
    """Which of the built kernels a GPU of this compute capability runs; or why it runs none."""
    number = 10 * capability[0] + capability[1]
    ahead = f"a forward for {_own(number)}; else " if number in own else ""
    older = [a for a in architectures if a <= number]
    if capability < OLDEST:
        return f"none: the kernels need compute capability {OLDEST[0]}.{OLDEST[1]} or later"
    if not older:
        return f"none: they were built for {', '.join(map(_dotted, architectures))} or later"
    same_major = [a for a in older if a // 10 == capability[0]]
    if same_major:  # machine code runs on later minor versions, not on later major ones
        return Device("", f"{ahead}machine code for {_dotted(max(same_major))}")
    words = f"PTX for {_dotted(max(older))}, which the driver compiles at the first use"
    return Device("", ahead + words)


def _gpus() -> list[Device]:
    found = []
    for i in range(torch.cuda.device_count()):
        kernels: Device | str = f"none: {_ops.missing_cuda}"
        if not _ops.missing_cuda:
            capability = torch.cuda.get_device_capability(i)
            kernels = serving(capability, cuda_architectures(), own_architectures())
        served = isinstance(kernels, Device)
        words = kernels.kernels if isinstance(kernels, Device) else kernels
        found.append(Device(f"cuda:{i}", words, served))
    return found


def _instruction_sets() -> list[Device]:
    chosen, found = _cpu.isa(), []
    for name, runs_here in _cpu.instruction_sets().items():
        why = "chosen by DIFFATTN_CPU_ISA" if os.environ.get("DIFFATTN_CPU_ISA") else "chosen"
        words = why if name == chosen else "not chosen" if runs_here else "this CPU lacks it"
        found.append(Device(f"cpu:{name}", words, runs_here))
    return found


def _dotted(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"


def _own(architecture: int) -> str:
    return f"{_dotted(architecture)}a"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
