"""The laws of the house (CONTRIBUTING.md), checked over every file of the repository.

Each law takes a path and its text and returns complaints. `test_a_planted_violation_is_caught`
shows that each law can fail; `test_an_innocent_file_passes` that it does not cry wolf. What breaks
a law today is named in DEBTS, which has to be exactly that: it can only shrink.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
from support.source import (
    blocks,
    body_after,
    comments,
    dead_names,
    field_count,
    kernel_arguments,
    without_comments,
)

ROOT = Path(__file__).resolve().parent.parent
CODE = {".py", ".cpp", ".h", ".cu", ".cuh"}
NATIVE = CODE - {".py"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_KERNEL_LINES, MAX_FIELDS = 400, 200, 60, 24
MAX_PAGE_LINES = 120

Law = Callable[[PurePosixPath, str], list[str]]


def in_folder(path: PurePosixPath, folder: str) -> bool:
    return path.is_relative_to(folder)


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


def architectures_stand_side_by_side(path: PurePosixPath, text: str) -> list[str]:
    """What two of them use lies in csrc/cuda/common: either could be deleted."""
    if path.parts[:2] != ("csrc", "cuda") or not re.fullmatch(r"sm\d+", path.parts[2]):
        return []
    others = rf"#\s*include.*\bsm(?!{path.parts[2][2:]}/)\d+/"
    return lines_matching(others, text, "another architecture's file")


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


def pages_are_short(path: PurePosixPath, text: str) -> list[str]:
    """One idea a page; api.md is written from docstrings."""
    count = len(text.splitlines())
    if path.suffix != ".md" or not in_folder(path, "docs") or path.name == "api.md":
        return []
    return [f"{count} lines, at most {MAX_PAGE_LINES} allowed"] if count > MAX_PAGE_LINES else []


def functions_are_short(path: PurePosixPath, text: str) -> list[str]:
    """A function has to fit a reader's head."""
    if path.suffix not in NATIVE or not in_folder(path, "csrc"):
        return []
    return [
        f"line {block.line}: a body of {block.length} lines, at most {MAX_FUNCTION_LINES} allowed"
        for block in blocks(without_comments(text))
        if block.is_function and block.length > MAX_FUNCTION_LINES
    ]


def kernels_are_short(path: PurePosixPath, text: str) -> list[str]:
    """A kernel reads as verbs, on one screen."""
    if path.suffix not in NATIVE or not in_folder(path, "csrc"):
        return []
    return [
        f"{block.name}: a kernel of {block.length} lines, at most {MAX_KERNEL_LINES} allowed"
        for block in blocks(without_comments(text))
        if "__global__" in block.opener and block.length > MAX_KERNEL_LINES
    ]


def params_are_small(path: PurePosixPath, text: str) -> list[str]:
    """Params of 72 fields are how attention kernels become unreadable."""
    if path.suffix not in NATIVE or not in_folder(path, "csrc"):
        return []
    complaints = []
    clean = without_comments(text)
    taken = kernel_arguments(clean) | types_that_kernels_take()
    for found in re.finditer(r"struct\s+(\w+)[^;{()]*\{", clean):
        count = field_count(body_after(clean, found.end()))
        if count > MAX_FIELDS and (found[1].endswith("Params") or found[1] in taken):
            complaints.append(f"{found[1]} has {count} fields, at most {MAX_FIELDS} allowed")
    return complaints


@cache
def types_that_kernels_take() -> frozenset[str]:
    texts = [(ROOT / p).read_text() for p in repository_files() if in_folder(p, "csrc")]
    return frozenset().union(*(kernel_arguments(without_comments(text)) for text in texts))


def a_limit_is_defined_once(path: PurePosixPath, text: str) -> list[str]:
    """The largest head dim: an array of 128 overflows the day that the limit is raised."""
    if path.suffix not in NATIVE or not in_folder(path, "csrc/cpu"):
        return []
    return lines_matching(r"\[[^\]]*\b(128|256)\b[^\]]*\]|,\s*(128|256)\s*>", text, "a bare limit")


def named_files_exist(path: PurePosixPath, text: str) -> list[str]:
    """A comment or a page that names a file is how a reader finds it. The changelog is history."""
    if in_folder(path, "tests/ptxsim") or path.name == "CHANGELOG.md":
        return []
    return [
        f"line {line}: there is no {name}"
        for line, comment in comments(text, path.suffix)
        for name in re.findall(r"[\w*{},/.\-]*[\w*}]\.(?:cuh?|cpp|h|py|md|toml)\b", comment)
        if not exists(name)
    ]


def words_are_plain(path: PurePosixPath, text: str) -> list[str]:
    """The words that CONTRIBUTING's list calls foreign, as far as a pattern can tell them."""
    kept = ("CHANGELOG.md", "CONTRIBUTING.md", "test_laws.py")
    if in_folder(path, "tests/ptxsim") or path.name in kept:
        return []
    found = re.compile(r"\b(beside|nobody|somebody|whoever)\b", re.IGNORECASE)
    return [f"line {n}: {m[1]}" for n, line in enumerate(text.splitlines(), 1)
            for m in found.finditer(line)]  # fmt: skip


# Files of other projects that comments name, and those that a program writes.
FOREIGN = ("x.py", "os.py", "multihead_diffattn.py", "cuda_occupancy.h", "page.md", "sanitizer.md",
           "registration.h", "build.toml",
           "counters.md")  # fmt: skip


@cache
def exists(name: str) -> bool:
    """A path that ends so; names may have wildcards, and {a,b} for alternatives."""
    if alternatives := re.search(r"\{([^}]*)\}", name):
        parts = alternatives[1].split(",")
        return all(exists(name.replace(alternatives[0], part)) for part in parts)
    paths = [f"/{path}" for path in listed_files()]
    wanted = "/" + re.sub(r"^(\.{1,2}/)+", "", name).lstrip("/")
    return PurePosixPath(name).name in FOREIGN or any(fnmatch(path, f"*{wanted}") for path in paths)


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
    architectures_stand_side_by_side,
    macros_only_check_errors,
    files_are_short,
    pages_are_short,
    functions_are_short,
    kernels_are_short,
    params_are_small,
    a_limit_is_defined_once,
    named_files_exist,
    words_are_plain,
    names_hold_no_variant,
    the_simulator_stands_alone,
]


# What breaks a law today, as `path: the complaint's beginning`. Mend it, and take it off the list.
DEBTS: dict[Law, tuple[str, ...]] = {}
DEAD: tuple[str, ...] = ()


@cache
def listed_files() -> list[PurePosixPath]:
    """Tracked files and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout to know which files are ours")
    return [p for line in listed.splitlines() if (ROOT / (p := PurePosixPath(line))).is_file()]


def repository_files() -> list[PurePosixPath]:
    """Those that have laws."""
    return [path for path in listed_files() if path.suffix in CODE | {".md"}]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_repository_obeys(law: Law) -> None:
    files = repository_files()
    assert PurePosixPath("tests/test_laws.py") in files, "the search for files is broken"
    complaints = [f"{p}: {c}" for p in files for c in law(p, (ROOT / p).read_text())]
    owed = DEBTS.get(law, ())
    new = [c for c in complaints if not c.startswith(tuple(f"{debt}: " for debt in owed))]
    assert not new, "\n".join(new)
    paid = [debt for debt in owed if not any(c.startswith(f"{debt}: ") for c in complaints)]
    assert not paid, f"no violation any more, take off DEBTS: {paid}"


def test_every_name_is_used() -> None:
    """Tests may call what csrc defines, too: the torch-free core has its own."""
    native = [path for path in repository_files() if path.suffix in NATIVE]
    texts = {str(path): (ROOT / path).read_text() for path in native
             if not in_folder(path, "tests/ptxsim")}  # fmt: skip
    dead = [name for name in dead_names(texts) if name.startswith("csrc/")]
    assert dead == sorted(DEAD), "dead code, or a debt that is paid"


def test_a_dead_name_is_found() -> None:
    text = """template <class T> struct Used { int f() const { return 1; } };
    __device__ inline uint32_t dead(T x) { if (x) { return 0; } }
    int used(Used<int> u) { return u.f(); }  // dead
    struct __align__(16) Unseen { int a; };
    int caller() { return used({}) + caller(); }"""
    assert dead_names({"a.h": text}) == ["a.h: Unseen", "a.h: dead"]


LONG_FUNCTION = "void f() {\n" + "  x += 1;\n" * 200 + "}\n"
LONG_KERNEL = "__global__ void __launch_bounds__(N, 1) k(P p) {\n" + "  x += 1;\n" * 60 + "}\n"
TEMPLATE = "template <class T, int N = (sizeof(T))>\n"
WIDE_PARAMS = "struct FwdParams {\n" + "".join(f"  View a{i}, b{i};\n" for i in range(13)) + "};\n"
WIDE_PLAN = WIDE_PARAMS.replace("FwdParams", "Plan")
PLANTED = [
    (only_bindings_know_torch, "csrc/cpu/fwd.cpp", "#include <torch/torch.h>\n"),
    (only_bindings_know_torch, "csrc/diffattn.h", "void f(at::Tensor q);\n"),
    (the_cpu_knows_no_cuda, "csrc/cpu/fwd.cpp", "#include <cuda_runtime.h>\n"),
    (the_cpu_knows_no_cuda, "csrc/cpu/fwd.h", "__global__ void k();\n"),
    (architectures_stand_side_by_side, "csrc/cuda/sm90/fwd/fwd.h", '#include "../../sm80/x.h"\n'),
    (macros_only_check_errors, "csrc/cuda/fwd.h", "#  define BOOL_SWITCH(x) if (x) {}\n"),
    (files_are_short, "diffattn_cuda/nn.py", "x = 1\n" * 401),
    (pages_are_short, "docs/cpu.md", "a\n" * 121),
    (functions_are_short, "csrc/cuda/fwd.h", LONG_FUNCTION),
    (functions_are_short, "csrc/cuda/fwd.h", TEMPLATE + LONG_FUNCTION),
    (functions_are_short, "csrc/cuda/f.h", "namespace n {\nstruct S {\n" + LONG_FUNCTION + "};\n}"),
    (kernels_are_short, "csrc/cuda/fwd.h", LONG_KERNEL),
    (kernels_are_short, "csrc/cuda/fwd.h", "namespace n {\n" + TEMPLATE + LONG_KERNEL + "}\n"),
    (params_are_small, "csrc/diffattn.h", WIDE_PARAMS),
    (
        params_are_small,
        "csrc/cuda/k.h",
        WIDE_PLAN + TEMPLATE + "__global__ void k(const Plan p);\n",
    ),
    (a_limit_is_defined_once, "csrc/cpu/rows.h", "void f() { C row[128]; }\n"),
    (a_limit_is_defined_once, "csrc/cpu/rows.h", "std::array<float, 256> row;\n"),
    (named_files_exist, "csrc/cpu/rows.h", "// As nowhere.h has it.\n"),
    (named_files_exist, "bench/speed.py", '"""See bench/nowhere.py."""\n'),
    (named_files_exist, "docs/cpu.md", "as `csrc/nowhere.h` has it\n"),
    (words_are_plain, "docs/cpu.md", "A row beside it.\n"),
    (words_are_plain, "bench/speed.py", "# Nobody waits.\n"),
    (named_files_exist, "tests/test_sim.py", "x = 1  # kernels_{avx2,nowhere}.cpp\n"),
    (names_hold_no_variant, "csrc/cuda/fwd_bf16_causal.cu", ""),
    (names_hold_no_variant, "csrc/cuda/fwd_sm90.cu", ""),
    (the_simulator_stands_alone, "tests/ptxsim/tests/test_x.py", "from diffattn_cuda import nn\n"),
]
INNOCENT = [
    (only_bindings_know_torch, "csrc/cpu/fwd.cpp", "// torch calls this\n/* at::x */ int x;\n"),
    (only_bindings_know_torch, "csrc/bindings/cpu.cpp", "#include <torch/csrc/stable/library.h>\n"),
    (the_cpu_knows_no_cuda, "csrc/cuda/fwd.cu", "#include <cuda_runtime.h>\n"),
    (architectures_stand_side_by_side, "csrc/cuda/sm90/k.cpp", '#include "../../sm90/fwd/fwd.h"\n'),
    (macros_only_check_errors, "csrc/cuda/check.h", "#define CUDA_CHECK(x) check(x, __FILE__)\n"),
    (files_are_short, "diffattn_cuda/nn.py", "x = 1\n" * 400),
    (pages_are_short, "docs/api.md", "a\n" * 500),
    (functions_are_short, "csrc/cuda/f.h", "namespace n {\n" + "void f() {\n}\n" * 150 + "}\n"),
    (functions_are_short, "csrc/cuda/f.h", TEMPLATE + "struct S {\n" + "int x;\n" * 250 + "};\n"),
    (kernels_are_short, "csrc/cuda/fwd.h", LONG_KERNEL.replace("  x += 1;\n", "", 2)),
    (a_limit_is_defined_once, "csrc/cpu/rows.h", "C row[kMost]; int x[12];  // not [128]\n"),
    (named_files_exist, "csrc/cpu/rows.h", "// tests/test_laws.py, kernels_{avx2,avx512}.cpp\n"),
    (named_files_exist, "bench/speed.py", 'PATH = "nowhere.py"\n'),
    (params_are_small, "csrc/diffattn.h", "struct P { int a = {1, 2}; void f(int, int); };\n"),
    (params_are_small, "csrc/diffattn.h", WIDE_PARAMS.replace("  View a0, b0;\n", "")),
    (params_are_small, "csrc/cuda/k.h", WIDE_PLAN + "__global__ void k(int n);\n"),
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
