"""constraints.txt pins all that `make setup` installs, and each number stands in one place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
sys.path.insert(0, str(ROOT / "tools"))
import lock_diff  # noqa: E402
import test_transformers as other_transformers  # noqa: E402

from diffattn_cuda.hf import PROVEN  # noqa: E402

PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())


def requirements() -> list[Requirement]:
    """Of the package, its extras and requirements.in, except the package itself."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]
    inputs = (ROOT / "requirements.in").read_text().splitlines()
    lines += [line for line in inputs if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    return [r for r in found if canonicalize_name(r.name) != "diffattn-cuda"]


def environment(python: str) -> dict[str, str]:
    return {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_pinned(python: str) -> None:
    where = environment(python)
    lines = [line for line in lock_diff.LOCK.read_text().splitlines() if "==" in line]
    pins: dict[str, list[Requirement]] = {}
    for pin in map(Requirement, lines):
        if pin.marker is None or pin.marker.evaluate(where):
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    assert all(len(found) == 1 for found in pins.values())
    for wanted in requirements():
        if wanted.marker is not None and not wanted.marker.evaluate(where):
            continue
        assert canonicalize_name(wanted.name) in pins, f"{wanted} is not pinned for {python}"
        (specifier,) = pins[canonicalize_name(wanted.name)][0].specifier
        assert wanted.specifier.contains(specifier.version), f"{wanted} is not {specifier}"


def test_every_transformers_that_is_tried_is_pinned() -> None:
    (lock,) = re.findall(r"^transformers==(\S+)", lock_diff.LOCK.read_text(), re.MULTILINE)
    exact = [lock, *other_transformers.OTHERS.values()]
    assert sorted(pin.rpartition(".")[0] for pin in exact) == sorted(PROVEN)


def test_a_difference_from_the_lock_is_told() -> None:
    (line,) = lock_diff.differences("pytest==1.0.0 ; sys_platform == 'linux'\n")
    assert line.startswith("pytest ")
    assert not lock_diff.differences("pytest==1.0.0 ; sys_platform == 'win32'\nnot-installed==1\n")


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout to know which files are ours")
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize(
    "number",
    [r"nvidia-cutlass==\d", r"^\s*(__version__|version|project\(\w+ VERSION)[ =]+\"?\d+\.\d"],
    ids=["CUTLASS", "the version"],
)
def test_a_number_stands_in_one_place(number: str) -> None:
    found = re.compile(number, re.MULTILINE)
    places = [p.name for p in tracked() if found.search(p.read_text(errors="ignore"))]
    assert places == ["pyproject.toml"]
