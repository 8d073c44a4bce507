"""The documents' code runs, and the API reference is that of the docstrings."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["functional", "components", "distributed", "flops", "nn", "duo", "head_patterns",
           "passkeys", "hf", "reference"]  # fmt: skip
PAGES = [path for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
         if "```python" in path.read_text() and path.name != "api.md"]  # fmt: skip


def load(path: Path) -> ModuleType:
    """A script that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_five_lines_of_the_readme_equal_the_formula() -> None:
    call, formula = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(call, scope)
    fused = scope["out"]
    exec(formula, scope)
    assert scope["out"] is not fused
    torch.testing.assert_close(fused, scope["out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_a_page_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.name.startswith("simulator"):
        monkeypatch.syspath_prepend(str(ROOT / "tests" / "ptxsim"))
        if importlib.import_module("ptxsim").find_nvcc() is None:
            pytest.skip("its first example compiles a kernel, and there is no nvcc")
    monkeypatch.chdir(tmp_path)
    page = Sybil([PythonCodeBlockParser()], path=str(path.parent), pattern=path.name).parse(path)
    examples = list(page.examples())
    assert examples
    for example in examples:
        example.evaluate()


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page: Path) -> list[str]:
    """Links to files and headings that are not there."""
    dead = []
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", page.read_text()):
        name, _, anchor = target.partition("#")
        to = page.parent / name if name else page
        if "://" in target or (to.exists() and (not anchor or anchor in anchors(to))):
            continue
        dead.append(f"{page.name}: {target}")
    return dead


def test_links_lead_somewhere(tmp_path: Path) -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    assert not [link for page in pages for link in dead_links(page)]
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n[1](#a-b-c) [2](#a-b) [3](none.md) [4](page.md#a-b-c) [5](page.md#d)"
    )
    assert dead_links(page) == [f"page.md: {x}" for x in ("#a-b", "none.md", "page.md#d")]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_docstring_has_an_example_that_runs(name: str) -> None:
    if name == "hf":
        pytest.importorskip("transformers", reason="transformers is not installed")
    module = importlib.import_module(f"diffattn_cuda.{name}")
    assert doctest.testmod(module, verbose=False).failed == 0
    found = {test.name.removeprefix(f"{module.__name__}."): test.examples
             for test in doctest.DocTestFinder().find(module)}  # fmt: skip
    public = [item.name for item in load(ROOT / "docs" / "api.py").public(name)]
    assert public and not [item for item in public if not found.get(item)]


def test_the_api_reference_is_up_to_date() -> None:
    api = load(ROOT / "docs" / "api.py")
    assert api.page() == api.TARGET.read_text(), "run `make docs`"
