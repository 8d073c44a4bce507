"""The project for the kernel hub: its rules, and two builds with their own names in one process."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import tomli
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import hub  # noqa: E402

COMPILED = (".cpp", ".cu")
NAMESPACE = "_diffattn_cuda_cpu_1234567"
# What kernel-builder writes.
OPS = f"""
import torch
from . import {NAMESPACE}
ops = torch.ops.{NAMESPACE}
def add_op_namespace_prefix(op_name: str):
    return f"{NAMESPACE}::{{op_name}}"
"""
REGISTRATION = """
#pragma once
#include <Python.h>
#define CONCAT_(A, B) A##B
#define CONCAT(A, B) CONCAT_(A, B)
#define STRING_(A) #A
#define STRING(A) STRING_(A)
#define REGISTER_EXTENSION(NAME) \\
  PyMODINIT_FUNC CONCAT(PyInit_, NAME)() { \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, STRING(NAME), nullptr, 0, nullptr}; \\
    return PyModule_Create(&module); \\
  }
"""
BOTH = """
import importlib.util, sys
from pathlib import Path
import torch
import diffattn_cuda

def load(folder):  # as `kernels` does it: under a name of its own, from a path
    spec = importlib.util.spec_from_file_location("hub_build_1", Path(folder) / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

other = load(sys.argv[1])
assert other.ops.kernels is not diffattn_cuda.ops.kernels
assert "{namespace}" in str(other.ops.kernels.fwd.default)
torch.manual_seed(0)
shapes = [(2, 40, 8, 32), (2, 40, 4, 32), (2, 40, 2, 64)]
inputs = [*(torch.randn(*shape) for shape in shapes), torch.rand(4)]
results = []
for package in (diffattn_cuda, other):
    leaves = [t.clone().requires_grad_() for t in inputs]
    eager = package.diff_flash_attn_func
    for function in (eager, torch.compile(eager, fullgraph=True, backend="aot_eager")):
        out = function(*leaves, causal=True, norm_eps=1e-5)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
        with torch.autocast("cpu", torch.bfloat16):
            assert function(*inputs).dtype == torch.bfloat16
for found in results[1:]:
    assert all(map(torch.equal, found, results[0]))

from diffattn_cuda import nn
module = nn.MultiheadDiffAttn(128, 3, 4, 2)
rel_pos = nn.rotary_tables(50, module.head_dim)
x = torch.randn(2, 40, 128)
adopted = other.layers.MultiheadDiffAttn.forward
assert torch.allclose(adopted(module, x, rel_pos), module(x, rel_pos), atol=1e-6)
print("both work")
""".replace("{namespace}", NAMESPACE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "project"
    hub.assemble(folder)
    return folder


@pytest.fixture(scope="module")
def build(project: Path) -> dict[str, Any]:
    return tomli.loads((project / "build.toml").read_text())


def python_files(project: Path) -> list[Path]:
    return sorted((project / "torch-ext").rglob("*.py"))


def test_build_toml_has_the_keys_of_edition_5(build: dict[str, Any]) -> None:
    assert {"name", "version", "edition", "license", "backends"} == set(build["general"])
    assert build["general"]["edition"] == 5
    assert set(build) == {"general", "torch", "kernel"} and set(build["torch"]) == {
        "src",
        "stable-abi",
    }
    assert set(build["torch"]["stable-abi"]) == set(build["general"]["backends"])
    own = {"cpu": {"cxx-flags"}, "cuda": {"cxx-flags", "cuda-flags", "cuda-capabilities"}}
    for section in build["kernel"].values():
        assert {"backend", "depends", "src"} <= set(section)
        assert set(section) <= {"backend", "depends", "src"} | own[section["backend"]]


def test_each_source_is_listed_once_and_every_include_is_there(
    project: Path, build: dict[str, Any]
) -> None:
    """Nix copies the listed files and no others; CMake compiles what is listed."""
    for backend in build["general"]["backends"]:
        sections = [s for s in build["kernel"].values() if s["backend"] == backend]
        listed = [*build["torch"]["src"], *(name for s in sections for name in s["src"])]
        compiled = [name for name in listed if name.endswith(COMPILED)]
        assert len(set(compiled)) == len(compiled)
        folder = project / "csrc" / backend
        there = {str(p.relative_to(project)) for p in folder.rglob("*") if p.suffix in COMPILED}
        assert set(compiled) == there | {"torch-ext/torch_binding.cpp"}
        for name in set(listed):
            for wanted in re.findall(r'^#include "(.*)"', (project / name).read_text(), re.M):
                path = ((project / name).parent / wanted).resolve()
                if wanted == "registration.h" or (backend == "cpu" and "cuda" in wanted):
                    continue
                if backend == "cuda" and path.name in ("cpu.cpp.inc", "cpu_decode.cpp.inc"):
                    continue
                assert str(path.relative_to(project.resolve())) in listed, (
                    f"{name} includes {wanted}"
                )


def test_python_keeps_the_rules_of_the_hub(project: Path) -> None:
    """Relative imports, torch and the standard library; ops under the build's namespace."""
    for path in python_files(project):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                root = name.split(".")[0]
                assert root == "torch" or root in sys.stdlib_module_names, f"{path.name}: {name}"
        assert (
            "torch.ops.diffattn." not in path.read_text() and '"diffattn::' not in path.read_text()
        )


def test_a_layer_is_pure(project: Path) -> None:
    tree = ast.parse((project / "torch-ext/diffattn_cuda/layers/__init__.py").read_text())
    for layer in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        assert [x.name for x in layer.body if isinstance(x, ast.FunctionDef)] == ["forward"]
        set_here = [t.id for x in layer.body if isinstance(x, ast.Assign) for t in x.targets
                    if isinstance(t, ast.Name)]  # fmt: skip
        assert set(set_here) <= {"has_backward", "can_torch_compile"}


def cpu_objects() -> list[Path]:
    """Of the last build, so that the kernels are not compiled a second time."""
    found = {p.name: p for p in sorted((ROOT / "build").glob("temp*/csrc/cpu/*.o"))}
    if not found:
        pytest.skip("needs the objects of a build: make build")
    return list(found.values())


def compile_binding(project: Path, folder: Path) -> Path:
    objects = cpu_objects()
    (folder / "registration.h").write_text(REGISTRATION)
    module = folder / f"{NAMESPACE}.abi3.so"
    included = [sysconfig.get_paths()["include"], *include_paths()]
    macros = [f"TORCH_EXTENSION_NAME={NAMESPACE}", "CPU_KERNEL", "Py_LIMITED_API=0x03090000",
              "TORCH_TARGET_VERSION=0x020A000000000000"]  # fmt: skip
    command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{folder}",
               *(f"-D{macro}" for macro in macros), *(f"-isystem{path}" for path in included),
               str(project / "torch-ext" / "torch_binding.cpp"), *map(str, objects),
               *(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10",
               "-o", str(module)]  # fmt: skip
    subprocess.run(command, check=True)
    return module


def test_two_builds_live_in_one_process(project: Path, tmp_path: Path) -> None:
    package = project / "torch-ext" / "diffattn_cuda"
    compile_binding(project, tmp_path).rename(package / f"{NAMESPACE}.abi3.so")
    (package / "_ops.py").write_text(OPS)
    done = subprocess.run(
        [sys.executable, "-c", BOTH, str(package)], text=True, capture_output=True
    )
    assert done.stdout == "both work\n", done.stderr
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider",
         "--rootdir", str(project), "-m", "kernels_ci", str(project / "tests")],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(package.parent)}, text=True,
        capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout
    assert "10 passed" in tests.stdout
