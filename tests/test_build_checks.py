"""What the build says where something that it needs is missing or too old."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import build_checks  # noqa: E402
import build_cuda  # noqa: E402
import build_manylinux  # noqa: E402


def test_nothing_is_missing_here() -> None:
    build_checks.check()


@pytest.mark.parametrize(
    "version, expected",
    [("2.10.0+cu130", (2, 10)), ("77", (77, 0)), ("2.11.0a0", (2, 11)), ("2.10rc1", (2, 10))],
)
def test_the_first_two_numbers_of_a_version(version: str, expected: tuple[int, int]) -> None:
    assert build_checks.numbers(version) == expected


@pytest.mark.parametrize(
    "found, said",
    [
        ({"torch": None}, "torch is not installed: diffattn_cuda is built with torch >= 2.10; "),
        ({"torch": "2.9.1+cpu"}, r"torch 2.9.1\+cpu is too old: .* with torch >= 2.10; "),
        ({"setuptools": "65.5.0"}, "setuptools 65.5.0 is too old: .* with setuptools >= 77.0; "),
    ],
)
def test_a_lack_is_told(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str | None], said: str
) -> None:
    all_found = {"torch": "2.14.1", "setuptools": "84.2.1"} | found
    monkeypatch.setattr(build_checks, "installed", all_found.get)
    with pytest.raises(SystemExit, match=said + "with --no-build-isolation .* pip install"):
        build_checks.check()


def test_the_backend_asks_before_it_imports_setuptools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_checks, "installed", {"torch": "2.14.1"}.get)
    monkeypatch.setitem(sys.modules, "setuptools.build_meta", None)
    monkeypatch.delitem(sys.modules, "build_backend", raising=False)
    with pytest.raises(SystemExit, match="setuptools is not installed: "):
        importlib.import_module("build_backend")


def test_other_systems_are_refused() -> None:
    assert build_checks.platform_lack("darwin") == "diffattn_cuda is for Linux, this is darwin"

    def musl(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    assert "musl" in build_checks.platform_lack("linux", musl)
    assert not build_checks.platform_lack("linux", lambda name: "glibc 2.28")


@pytest.mark.parametrize("choice, built", [("", False), ("0", False), ("1", True)])
def test_an_nvcc_without_cutlass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], choice: str, built: bool
) -> None:
    """Two plain lines of pip build without CUDA there; who asks for CUDA gets an error later."""
    monkeypatch.setenv("DIFFATTN_CUDA", choice)
    monkeypatch.setattr(build_cuda, "find_nvcc", lambda: "/bin/nvcc")
    monkeypatch.setattr(build_cuda, "find_cutlass", lambda: None)
    assert build_cuda.wanted() is built
    said = capsys.readouterr().out
    assert ("WITHOUT CUDA" in said and "nvidia-cutlass==" in said) is (choice == "")


def test_a_wrong_choice_of_manylinux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFATTN_MANYLINUX", "yes")
    with pytest.raises(SystemExit, match="DIFFATTN_MANYLINUX is 'yes', accepted: 0, 1 or unset"):
        build_manylinux.wanted()


def test_the_linker_of_manylinux(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = type(sys)("ziglang")
    module.__file__ = "/opt/ziglang/__init__.py"
    monkeypatch.setitem(sys.modules, "ziglang", module)
    assert build_manylinux.linker()[:4] == [
        "/opt/ziglang/zig", "cc", "-target", "x86_64-linux-gnu.2.28"]  # fmt: skip
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(SystemExit, match="pip install ziglang"):
        build_manylinux.linker()
