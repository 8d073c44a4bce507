"""The laws of the house (CONTRIBUTING.md), checked over every file of the repository.

Each law takes a path and its text and returns complaints. `test_a_planted_violation_is_caught`
shows that each law can fail; `test_an_innocent_file_passes` that it does not cry wolf.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = {".py", ".cpp", ".h", ".cu", ".cuh"}
NATIVE = CODE - {".py"}
MAX_FILE_LINES, MAX_KERNEL_LINES, MAX_PARAMS_FIELDS = 400, 200, 24

Law = Callable[[PurePosixPath, str], list[str]]


def in_folder(path: PurePosixPath, folder: str) -> bool:
    return path.is_relative_to(folder)


def without_comments(text: str) -> str:
    """C++ text with comments blanked; line numbers stay."""
    block = re.compile(r"/\*.*?\*/", re.DOTALL)
    text = block.sub(lambda m: "\n" * m.group().count("\n"), text)
    return re.sub(r"//[^\n]*", "", text)


def lines_matching(pattern: str, text: str, why: str) -> list[str]:
    found = re.compile(pattern, re.IGNORECASE)
    lines = without_comments(text).splitlines()
    return [
        f"line {n}: {why}: {line.strip()}" for n, line in enumerate(lines, 1) if found.search(line)
    ]


def only_bindings_know_torch(path: PurePosixPath, text: str) -> list[str]:
    """Kernels outlive torch's ABI: torch stays in csrc/bindings."""
    if not in_folder(path, "csrc") or in_folder(path, "csrc/bindings"):
        return []
    return lines_matching(r"\btorch\b|\bATen\b|\bc10\b|\bat::", text, "torch below csrc/bindings")


def the_cpu_knows_no_cuda(path: PurePosixPath, text: str) -> list[str]:
    """The CPU backend builds on a machine without a CUDA toolkit."""
    if not in_folder(path, "csrc/cpu"):
        return []
    return lines_matching(r"cuda|cutlass|\bcute\b|__global__|__device__", text, "CUDA in csrc/cpu")


def macros_only_check_errors(path: PurePosixPath, text: str) -> list[str]:
    """A macro hides control flow and types from readers; an error check needs file and line."""
    if not in_folder(path, "csrc"):
        return []
    return lines_matching(r"^\s*#\s*define\s+(?!\w*CHECK)", text, "a macro that checks no error")


def files_are_short(path: PurePosixPath, text: str) -> list[str]:
    """One idea a file."""
    count = len(text.splitlines())
    if path.suffix not in CODE or count <= MAX_FILE_LINES:
        return []
    return [f"{count} lines, at most {MAX_FILE_LINES} allowed"]


def kernels_are_short(path: PurePosixPath, text: str) -> list[str]:
    """A kernel has to fit a reader's head; so has any other function."""
    if path.suffix not in NATIVE or not in_folder(path, "csrc"):
        return []
    return [
        f"line {start}: a body of {length} lines, at most {MAX_KERNEL_LINES} allowed"
        for start, length, opener in blocks(without_comments(text))
        if length > MAX_KERNEL_LINES and not re.search(r"\b(namespace|struct|class|enum)\b", opener)
    ]


def params_are_small(path: PurePosixPath, text: str) -> list[str]:
    """Params of 72 fields are how attention kernels become unreadable."""
    if path.suffix not in NATIVE or not in_folder(path, "csrc"):
        return []
    complaints = []
    clean = without_comments(text)
    for found in re.finditer(r"struct\s+(\w*Params)\b[^;{]*\{", clean):
        count = field_count(body_after(clean, found.end()))
        if count > MAX_PARAMS_FIELDS:
            complaints.append(f"{found[1]} has {count} fields, at most {MAX_PARAMS_FIELDS} allowed")
    return complaints


def names_hold_no_variant(path: PurePosixPath, text: str) -> list[str]:
    """A variant is an argument or a folder (csrc/cuda/sm90/), not a copy of a file."""
    if not in_folder(path, "csrc"):
        return []
    variant = (
        r"bf16|fp16|fp32|fp64|f16|f32|f64|causal|window|varlen|paged|gqa|mqa"
        r"|deterministic|sm\d+|v\d+|new|old|opt|final"
    )
    parts = re.split(r"[_\-.]", path.stem.lower())
    return [f"the file name holds a variant: {p}" for p in parts if re.fullmatch(variant, p)]


def the_simulator_stands_alone(path: PurePosixPath, text: str) -> list[str]:
    """tests/ptxsim could leave for a repository of its own tomorrow."""
    if not in_folder(path, "tests/ptxsim") or path.suffix not in CODE:
        return []
    pattern = r"^\s*(#\s*include|import|from)\b.*diffattn"
    return lines_matching(pattern, text, "the simulator imports the package")


LAWS: list[Law] = [
    only_bindings_know_torch,
    the_cpu_knows_no_cuda,
    macros_only_check_errors,
    files_are_short,
    kernels_are_short,
    params_are_small,
    names_hold_no_variant,
    the_simulator_stands_alone,
]


def blocks(text: str) -> Iterator[tuple[int, int, str]]:
    """Every {...}: the line it opens on, how many lines it spans, and the statement before it."""
    stack: list[tuple[int, str]] = []
    line, statement = 1, ""
    for char in text:
        line += char == "\n"
        if char == "{":
            stack.append((line, statement))
        elif char == "}" and stack:
            start, opener = stack.pop()
            yield start, line - start + 1, opener
        statement = "" if char in "{};" else statement + char


def body_after(text: str, start: int) -> str:
    """The text from just after an opening brace to its closing one."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return text[start:]


def field_count(body: str) -> int:
    """Data members of a struct's body: each declarator of `View q, k, v;` counts."""
    body = re.sub(r"\{[^{}]*\}", "", body)
    body = re.sub(r"<[^<>]*>", "", body)
    members = [m.strip() for m in body.split(";")]
    data = [
        m for m in members if m and "(" not in m and not re.match(r"(static|using|struct)\b", m)
    ]
    return sum(m.count(",") + 1 for m in data)


def repository_files() -> list[PurePosixPath]:
    """Tracked files and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout to know which files are ours")
    paths = (PurePosixPath(line) for line in listed.splitlines())
    return [p for p in paths if p.suffix in CODE and (ROOT / p).is_file()]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_repository_obeys(law: Law) -> None:
    files = repository_files()
    assert PurePosixPath("tests/test_laws.py") in files, "the search for files is broken"
    complaints = [f"{p}: {c}" for p in files for c in law(p, (ROOT / p).read_text())]
    assert not complaints, "\n".join(complaints)


LONG_KERNEL = "__global__ void k() {\n" + "  x += 1;\n" * 200 + "}\n"
WIDE_PARAMS = "struct FwdParams {\n" + "".join(f"  View a{i}, b{i};\n" for i in range(13)) + "};\n"
PLANTED = [
    (only_bindings_know_torch, "csrc/cpu/fwd.cpp", "#include <torch/torch.h>\n"),
    (only_bindings_know_torch, "csrc/diffattn.h", "void f(at::Tensor q);\n"),
    (the_cpu_knows_no_cuda, "csrc/cpu/fwd.cpp", "#include <cuda_runtime.h>\n"),
    (the_cpu_knows_no_cuda, "csrc/cpu/fwd.h", "__global__ void k();\n"),
    (macros_only_check_errors, "csrc/cuda/fwd.h", "#  define BOOL_SWITCH(x) if (x) {}\n"),
    (files_are_short, "diffattn_cuda/nn.py", "x = 1\n" * 401),
    (kernels_are_short, "csrc/cuda/fwd.h", LONG_KERNEL),
    (kernels_are_short, "csrc/cuda/fwd.h", "namespace n {\nstruct S {\n" + LONG_KERNEL + "};\n}\n"),
    (params_are_small, "csrc/diffattn.h", WIDE_PARAMS),
    (names_hold_no_variant, "csrc/cuda/fwd_bf16_causal.cu", ""),
    (names_hold_no_variant, "csrc/cuda/fwd_sm90.cu", ""),
    (the_simulator_stands_alone, "tests/ptxsim/tests/test_x.py", "from diffattn_cuda import nn\n"),
]
INNOCENT = [
    (only_bindings_know_torch, "csrc/cpu/fwd.cpp", "// torch calls this\n/* at::x */ int x;\n"),
    (only_bindings_know_torch, "csrc/bindings/cpu.cpp", "#include <torch/csrc/stable/library.h>\n"),
    (the_cpu_knows_no_cuda, "csrc/cuda/fwd.cu", "#include <cuda_runtime.h>\n"),
    (macros_only_check_errors, "csrc/cuda/check.h", "#define CUDA_CHECK(x) check(x, __FILE__)\n"),
    (files_are_short, "diffattn_cuda/nn.py", "x = 1\n" * 400),
    (kernels_are_short, "csrc/cuda/fwd.h", "namespace n {\n" + "void f() {\n}\n" * 150 + "}\n"),
    (params_are_small, "csrc/diffattn.h", "struct P { int a = {1, 2}; void f(int, int); };\n"),
    (params_are_small, "csrc/diffattn.h", WIDE_PARAMS.replace("  View a0, b0;\n", "")),
    (names_hold_no_variant, "csrc/cuda/fwd_d64.cu", ""),
    (the_simulator_stands_alone, "tests/test_sim.py", "import diffattn_cuda\n"),
]


def plant_id(value: object) -> str:
    return getattr(value, "__name__", "") or str(value)[:24].split("\n")[0]


@pytest.mark.parametrize("law, path, text", PLANTED, ids=plant_id)
def test_a_planted_violation_is_caught(law: Law, path: str, text: str) -> None:
    assert law(PurePosixPath(path), text)


@pytest.mark.parametrize("law, path, text", INNOCENT, ids=plant_id)
def test_an_innocent_file_passes(law: Law, path: str, text: str) -> None:
    assert not law(PurePosixPath(path), text)


def test_every_law_has_a_planted_violation() -> None:
    assert {law.__name__ for law, _, _ in PLANTED} == {law.__name__ for law in LAWS}
