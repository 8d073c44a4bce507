"""tools/build_cost.py sees the compilers that it is to watch, and tells their files apart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil", reason="psutil is not installed")
ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import build_cost as module

    yield module
    del sys.modules["build_cost"]


def compiler(mebibytes: int, *arguments: str) -> list[str]:
    """A process that holds memory for half a second, with a compiler's arguments."""
    code = f"import time; held = b'x' * ({mebibytes} * {MIB}); time.sleep(0.5)"
    return [sys.executable, "-c", code, *arguments]


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def driver(child: list[str], *arguments: str) -> list[str]:
    """A process that waits for another, as nvcc does for its compilers."""
    return [sys.executable, "-c", f"import subprocess; subprocess.run({child})", *arguments]


def test_memory_is_counted_for_the_file_on_the_command_line(build: Any) -> None:
    watch = build.Watch(["csrc/cuda/fwd.cu", "csrc/cuda/sm80/fwd.cu"])
    watch.during(lambda: run(*compiler(200, "-c", "/a/b/csrc/cuda/sm80/fwd.cu", "-o", "fwd.o")))
    cost = watch.cost("csrc/cuda/sm80/fwd.cu")
    assert 200 < cost.peak_mib < 300 and 0.3 < cost.seconds
    assert watch.peak / MIB == pytest.approx(cost.peak_mib)
    assert watch.cost("csrc/cuda/fwd.cu").peak_mib is None


def test_a_process_with_a_temporary_name_belongs_to_the_file_of_its_parent(build: Any) -> None:
    """Two architectures hold files of one name, which a temporary name would not tell apart."""
    watch = build.Watch(["csrc/cuda/sm80/fwd.cu", "csrc/cuda/sm90/fwd.cu"])
    child = compiler(200, "/tmp/tmpxft_17-6_fwd.ptx")
    watch.during(lambda: run(*driver(child, "-c", "csrc/cuda/sm90/fwd.cu")))
    assert watch.cost("csrc/cuda/sm90/fwd.cu").peak_mib > 200
    assert watch.cost("csrc/cuda/sm80/fwd.cu").peak_mib is None


def test_the_linker_is_no_compiler(build: Any) -> None:
    watch = build.Watch(["csrc/cuda/fwd.cu"])
    watch.during(lambda: run(*compiler(10, "-shared", "build/cuda/fwd.o")))
    assert watch.peak == 0


def test_an_object_is_found_by_its_path(build: Any, tmp_path: Path) -> None:
    for place, size in (("cuda/sm80/fwd.o", 1), ("cuda/sm90/fwd.o", 2), ("temp/csrc/cpu/fwd.o", 3)):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * size * 10**6)
    for source, size in (("cuda/sm80/fwd.cu", 1), ("cuda/sm90/fwd.cu", 2), ("cpu/fwd.cpp", 3)):
        assert build.size_of(f"csrc/{source}", tmp_path) == size
    assert build.size_of("csrc/cuda/fwd.cu", tmp_path) is None


def test_a_file_that_is_not_built_is_refused(build: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--only fwd_d65: no such file.*expected one of .*fwd"):
        build.single("fwd_d65", tmp_path)


def test_a_whole_build_of_a_small_project(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, scratch = tmp_path / "project", tmp_path / "scratch"
    (project / "csrc").mkdir(parents=True)
    scratch.mkdir()
    (project / "csrc" / "tiny.cpp").write_text("#include <map>\nint answer() { return 42; }\n")
    (project / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        "setup(name='tiny', version='1', packages=[], "
        "ext_modules=[Extension('tiny', ['csrc/tiny.cpp'], extra_compile_args=['-O2'])])\n"
    )
    monkeypatch.setattr(build, "ROOT", project)
    costs, seconds, wheel = build.whole(scratch)
    assert [cost.file for cost in costs] == ["csrc/tiny.cpp", "all"]
    assert costs[0].peak_mib > 5 and costs[0].seconds < seconds and costs[0].object_mb > 0
    assert costs[1].peak_mib == pytest.approx(costs[0].peak_mib) and 0 < wheel < 1
