"""bench/build.py sees the compilers it is to watch, and tells their files apart."""

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
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import build as module

    yield module
    del sys.modules["build"]


def compiler(mebibytes: int, *arguments: str) -> None:
    """A process that holds memory for half a second, with a compiler's arguments."""
    code = f"import time; held = b'x' * ({mebibytes} * {MIB}); time.sleep(0.5)"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def test_memory_is_counted_for_the_file_on_the_command_line(build: Any) -> None:
    watch = build.Watch(["csrc/cuda/fwd.cu", "csrc/cuda/sm80/fwd_d64.cu"])
    watch.during(lambda: compiler(200, "-c", "/tmp/tmpxft_17-6_fwd_d64.ptx"))
    cost = watch.cost("csrc/cuda/sm80/fwd_d64.cu")
    assert 200 < cost.peak_mib < 300 and 0.3 < cost.seconds
    assert watch.peak / MIB == pytest.approx(cost.peak_mib)
    assert watch.cost("csrc/cuda/fwd.cu").peak_mib is None


def test_the_linker_is_no_compiler(build: Any) -> None:
    watch = build.Watch(["csrc/cuda/fwd.cu"])
    watch.during(lambda: compiler(10, "-shared", "build/cuda/fwd.o"))
    assert watch.peak == 0


def test_every_source_has_a_stem_of_its_own(build: Any) -> None:
    stems = [Path(source).stem for source in build.sources()]
    assert "fwd_d64" in stems and "kernels_avx2" in stems and len(set(stems)) == len(stems)


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
