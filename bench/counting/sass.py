"""What ptxas made of a kernel: registers, spills, and the instructions of its main loop.

    python bench/counting/sass.py build/cuda/sm80/fwd_d64.o

Any object or cubin will do, a neighbour's too. nvdisasm comes with CUDA or from PyPI
(nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tabulate import tabulate

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import build_cuda  # noqa: E402

MACHINE_CODE = 190  # EM_CUDA
LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;")
TARGET = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
# The two pipes of a sub-core that do all fp32 and integer work. Addresses and loop control are part
# of it; the uniform datapath is not.
FMA_PIPE = ("FFMA", "FADD", "FMUL", "IMAD", "HADD2", "HFMA2", "HMUL2")
ALU_PIPE = ("FMNMX", "FSEL", "FSETP", "F2FP", "IADD3", "IMNMX", "ISETP", "LEA", "LOP3", "MOV",
            "PLOP3", "PRMT", "SEL", "SHF")  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """The innermost loop that holds the most tensor core instructions, as most of its steps run it.

    With products of warpgroups it is the shortest loop that has any: the first and the last product
    of a pass stand around it.

    Blocks that a branch of the loop skips are left out if they hold no tensor core instruction
    (rescales, waiting for a turn), unless they start copies, which run in every step. Of two
    alternatives the longer one is left out, because that one masks.
    """

    opcodes: Counter[str]

    @property
    def hmma(self) -> int:
        return self.opcodes["HMMA"] + self.opcodes["HGMMA"]

    @property
    def others_per_hmma(self) -> float:
        return (self.opcodes.total() - self.hmma) / self.hmma

    @property
    def exp2(self) -> int:
        return self.opcodes["MUFU"]

    @property
    def fma(self) -> int:
        return sum(self.opcodes[name] for name in FMA_PIPE)

    @property
    def alu(self) -> int:
        return sum(self.opcodes[name] for name in ALU_PIPE)


def resources(kernel: str, architecture: int = build_cuda.OLDEST) -> dict[str, float]:
    """Registers and spilled bytes of a kernel that was built, by its mangled name."""
    source, _ = build_cuda.find_kernel(kernel, architecture=architecture)
    report = build_cuda.kernels_of(source)[kernel]
    return {
        "registers": int(re.findall(r"Used (\d+) registers", report)[0]),
        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
    }


def loop_of(kernel: str, architecture: int = build_cuda.OLDEST) -> Loop:
    """The main loop of a kernel that was built."""
    source, _ = build_cuda.find_kernel(kernel, architecture=architecture)
    loop = main_loops(build_cuda.object_of(source)).get(kernel)
    if loop is None:
        raise SystemExit(f"{kernel} has no loop with tensor core instructions")
    return loop


def find_nvdisasm() -> str:
    found = _nvdisasm()
    if found is None:
        raise SystemExit("no nvdisasm: pip install nvidia-cuda-nvdisasm, or put CUDA's on PATH")
    return found


def has_nvdisasm() -> bool:
    return _nvdisasm() is not None


def _nvdisasm() -> str | None:
    roots = {Path(sysconfig.get_paths()[key]) / "nvidia" for key in ("purelib", "platlib")}
    packaged = [path for root in roots for path in root.glob("*/bin/nvdisasm")]
    return shutil.which("nvdisasm") or next(map(str, packaged), None)


@cache
def main_loops(path: Path) -> dict[str, Loop]:
    """The main loop of each kernel of an object, by mangled name."""
    return {
        name: loop
        for image in machine_code(path.read_bytes())
        for name, lines in functions(disassembled(image))
        if (loop := main_loop(lines)) is not None
    }


def machine_code(data: bytes) -> Iterator[bytes]:
    """The ELF images of kernels: a cubin, or those that lie, uncompressed, in a host object."""
    at = data.find(b"\x7fELF")
    while at != -1:
        (machine,) = struct.unpack_from("<H", data, at + 18)
        if machine == MACHINE_CODE:
            program, section = struct.unpack_from("<QQ", data, at + 32)
            entry, programs, entry_s, sections = struct.unpack_from("<HHHH", data, at + 54)
            end = max(program + entry * programs, section + entry_s * sections)
            yield data[at : at + end]
        at = data.find(b"\x7fELF", at + 4)


def disassembled(image: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        command = [find_nvdisasm(), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def functions(text: str) -> Iterator[tuple[str, list[str]]]:
    for part in re.split(r"^\.text\.", text, flags=re.M)[1:]:
        name, _, body = part.partition(":")
        yield name, body.splitlines()


def main_loop(lines: list[str]) -> Loop | None:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := INSTRUCTION.match(line):
            instructions.append(instruction[1])
    ranges = [(labels[x], i + 1) for i, x in _branches(instructions) if labels[x] <= i]
    loops = [_loop(instructions[begin:end], begin, labels) for begin, end in ranges]
    sizes = [end - begin for begin, end in ranges]
    of_warpgroups = [(n, x) for n, x in zip(sizes, loops, strict=True) if x.opcodes["HGMMA"]]
    if of_warpgroups:
        return min(of_warpgroups, key=lambda found: found[0])[1]
    return max((x for x in loops if x.hmma), key=lambda x: x.hmma, default=None)


def _branches(instructions: list[str]) -> Iterator[tuple[int, str]]:
    for i, instruction in enumerate(instructions):
        if target := TARGET.search(instruction):
            yield i, target[1]


def _loop(body: list[str], start: int, labels: dict[str, int]) -> Loop:
    kept = set(range(len(body)))
    for i, target in _branches(body):
        join = labels[target] - start
        if body[i].startswith("@") and i < join <= len(body):
            kept -= set(_seldom(body, i, join, labels, start))
    return Loop(Counter(_opcode(body[i]) for i in kept))


def _seldom(body: list[str], i: int, join: int, labels: dict[str, int], start: int) -> range:
    """The code after conditional branch i, which jumps to join, that most steps do not run."""
    block = range(i + 1, join)
    if leap := _unconditional(body[join - 1]):  # over the other alternative
        other = range(join, labels[leap] - start)
        if join < other.stop <= len(body) and not _is_essential(body, other):
            block = max(block, other, key=len)
    return range(0) if _is_essential(body, block) else block


def _unconditional(instruction: str) -> str | None:
    target = TARGET.match(instruction)
    return target[1] if target else None


def _is_essential(body: list[str], block: range) -> bool:
    return bool({_opcode(body[j]) for j in block} & {"HMMA", "HGMMA", "LDGSTS"})


def _opcode(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("object", type=Path)
    args = parser.parse_args()
    lines = [
        (name, x.hmma, f"{x.others_per_hmma:.3f}", x.exp2, x.fma, x.alu)
        for name, x in main_loops(args.object).items()
    ]
    header = ("kernel", "HMMA", "others per HMMA", "MUFU", "FMA pipe", "ALU pipe")
    print(tabulate(lines, header, tablefmt="github"))


if __name__ == "__main__":
    main()
