"""Write the tables of docs/support.md from the sources: `python tools/support_table.py`.

`make docs` does so too. What a GPU can run stands in csrc/cuda: each folder smNN has a table of
entry points (kernels.cpp) and its instances: launch_fwd<__half, 64, 128> is fp16, head dims up to
64, V 128 wide. "Head dims over 32" above them says that narrower ones are another architecture's.
What a CPU can run stands in csrc/cpu, where every instruction set has all shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from page import rewrite, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "support.md"
CUDA, CPU = ROOT / "csrc" / "cuda", ROOT / "csrc" / "cpu"
DTYPES = {"__half": "fp16", "__nv_bfloat16": "bf16"}
OPS = {"fwd": "forward", "bwd": "backward", "decode": "decoding"}
INSTANCE = re.compile(r"template void launch_(\w+?)<(\w+), (\d+), (\d+)")


@dataclass(frozen=True)
class Instance:
    """A kernel as compiled: it serves head dims between the next smaller `d` and its own."""

    op: str
    dtype: str
    d: int
    dv: int
    over: int | None  # the widest head dim that is not its own, if the file says so


def architectures() -> list[Path]:
    return sorted(path.parent for path in CUDA.glob("sm*/kernels.cpp"))


def instances(folder: Path) -> list[Instance]:
    found = []
    paths = [*folder.rglob("instances/*.cu")]
    if folder == architectures()[0]:  # for which the rooms of every architecture are compiled
        paths += (CUDA / "decode").glob("instances/*.cu")
    for path in sorted(paths):
        text = path.read_text()
        said = re.search(r"Head dims over (\d+)", text)
        over = int(said[1]) if said else None
        for op, dtype, d, dv in INSTANCE.findall(text):
            found.append(Instance(op, DTYPES[dtype], int(d), int(dv), over))
    return found


def capability(folder: Path) -> str:
    """As the table's own test says: `capability >= 80`, or `capability / 10 == 9`."""
    text = (folder / "kernels.cpp").read_text()
    found = re.search(r"return (capability[^;]*);", text)
    assert found, f"{folder}/kernels.cpp does not say on which devices it runs"
    if oldest := re.fullmatch(r"capability >= (\d)(\d)", found[1]):
        return f"{oldest[1]}.{oldest[2]} and later"
    if only := re.fullmatch(r"capability == (\d)(\d)", found[1]):
        return f"{only[1]}.{only[2]}"
    return f"`{found[1]}`"


def cuda_rows() -> list[list[str]]:
    rows = []
    for folder in architectures():
        mine = instances(folder)
        for d in sorted({i.d for i in mine}):
            smaller = max((i.d for i in mine if i.d < d), default=0)
            cells = [_widths([i for i in mine if i.d == d and i.op == op]) for op in OPS]
            over = next((i.over for i in mine if i.d == d and i.over is not None), smaller)
            dims = f"{over + 8}–{d}"
            rows.append([folder.name, capability(folder), dims, *cells])
    return rows


def _widths(found: list[Instance]) -> str:
    """Dtypes, and V's width as a multiple of d."""
    dtypes = sorted({i.dtype for i in found})
    widths = ["d" if i == 1 else f"{i}d" for i in sorted({i.dv // i.d for i in found})]
    return f"{', '.join(dtypes)}; V {' or '.join(widths)} wide" if found else "no"


def cpu_rows() -> list[list[str]]:
    """By dispatch.cpp's list: a name, the kernels of numbers, and those of bf16."""
    text = (CPU / "dispatch.cpp").read_text()
    listed = re.findall(r'\{"([a-z0-9-]+)", k\w+, k\w+(\.floats)?\}', text)
    assert listed, "csrc/cpu/dispatch.cpp lists no instruction set"
    rows = []
    for name, as_floats in listed:
        product = "converted to fp32" if as_floats else "multiplied as bf16"
        dtypes = f"fp64, fp32, fp16, bf16 ({product})"
        rows.append([f"`{name}`", dtypes, "8–128", "d or 2d", "all"])
    return rows


def write(page: Path = PAGE) -> None:
    header = ["kernels", "compute capability", "d", *OPS.values()]
    rewrite(page, "cuda", _words(table(header, cuda_rows())))
    header = ["`DIFFATTN_CPU_ISA`", "dtypes", "d", "V", "operations"]
    rewrite(page, "cpu", _words(table(header, cpu_rows())))


def _words(figures: str) -> str:
    """Words stand to the left."""
    return figures.replace("---:", "---")


if __name__ == "__main__":
    write()
