"""tools/build_cuda.py: the source tree decides what nvcc compiles, for which GPU, and where to.

A script stands in for nvcc, because what is tested is which commands it gets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
import build_cuda  # noqa: E402

FILES = ("fwd.cu", "common/plan.cpp", "sm80/fwd/d64.cu", "sm90/fwd/d64.cu", "sm90/fwd/tile.cuh")
NVCC = """#!/bin/sh
case "$*" in
  --list-gpu-arch) echo compute_75; echo compute_80; echo compute_90; exit ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    -MF) echo "x: $source" > "$2" ;;
    -c) source=$2 ;;
    -o) echo made > "$2"; echo "ptxas info: Compiling entry function '_Z3fwdv' for 'sm_80'" ;;
  esac
  shift
done
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two architectures, whose files have the same names."""
    for name in FILES:
        path = tmp_path / "csrc" / "cuda" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(NVCC)
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("DIFFATTN_CUDA_ARCHS", raising=False)
    monkeypatch.setattr(build_cuda, "ROOT", tmp_path)
    monkeypatch.setattr(build_cuda, "SOURCES", tmp_path / "csrc" / "cuda")
    monkeypatch.setattr(build_cuda, "OBJECTS", tmp_path / "build" / "cuda")
    monkeypatch.setattr(build_cuda.Toolkit, "_includes", lambda self: [])
    return tmp_path


def names() -> list[str]:
    return [str(path.relative_to(build_cuda.SOURCES)) for path in build_cuda.sources()]


def test_the_folders_decide_what_is_built(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["common/plan.cpp", "fwd.cu", "sm80/fwd/d64.cu", "sm90/fwd/d64.cu"]
    assert names() == both and build_cuda.architectures() == ["80", "90"]
    assert build_cuda.compiled() == ["80", "90a"]
    monkeypatch.setenv("DIFFATTN_CUDA_ARCHS", "80;86")
    assert names() == both[:3] and build_cuda.compiled() == ["80", "86"]
    monkeypatch.setenv("DIFFATTN_CUDA_ARCHS", "90")
    assert names() == both and build_cuda.compiled() == ["90", "90a"]


def test_a_folder_has_its_flags(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer architecture's instructions exist for that one alone."""
    monkeypatch.setenv("DIFFATTN_CUDA_ARCHS", "80; 90")
    toolkit = build_cuda.Toolkit()
    listed = [f"-gencode=arch=compute_{n},code=[sm_{n},compute_{n}]" for n in (80, 90)]
    own = ["-gencode=arch=compute_90a,code=[sm_90a,compute_90a]"]
    for name, expected in zip(FILES, (listed, listed, listed, own), strict=False):
        flags = toolkit.flags_of(build_cuda.SOURCES / name)
        assert [flag for flag in flags if "gencode" in flag] == expected, name


def test_by_default_a_file_is_compiled_for_its_folder(tree: Path) -> None:
    """Outside of one, for every architecture that has one."""
    toolkit = build_cuda.Toolkit()
    for name, targets in zip(FILES, (["80", "90"], ["80", "90"], ["80"], ["90a"]), strict=False):
        flags = toolkit.flags_of(build_cuda.SOURCES / name)
        assert [flag for flag in flags if "gencode" in flag] == [
            f"-gencode=arch=compute_{n},code=[sm_{n},compute_{n}]" for n in targets
        ], name


def test_an_architecture_that_nvcc_does_not_know_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFATTN_CUDA_ARCHS", "80;75")
    with pytest.raises(SystemExit, match="is '80;75', accepted: .* from sm_80 on: 80, 90"):
        build_cuda.Toolkit()


def test_an_object_lies_at_the_path_of_its_source(tree: Path) -> None:
    toolkit = build_cuda.Toolkit()
    made = [toolkit.compile(source) for source in build_cuda.sources()]
    expected = ["common/plan.o", "fwd.o", "sm80/fwd/d64.o", "sm90/fwd/d64.o"]
    assert made == [str(tree / "build" / "cuda" / name) for name in expected]
    assert all(Path(path).exists() for path in made)


def test_only_what_changed_is_compiled_anew(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build_cuda.SOURCES / "sm80" / "fwd" / "d64.cu"
    for expected in (True, False):
        build_cuda.Toolkit().compile(source)
        assert ("d64.cu: " in capsys.readouterr().out) is expected
    monkeypatch.setenv("DIFFATTN_CUDA_ARCHS", "90")
    build_cuda.Toolkit().compile(source)
    assert "d64.cu: " in capsys.readouterr().out


def test_a_kernel_is_found_by_its_name_and_architecture(tree: Path) -> None:
    toolkit = build_cuda.Toolkit()
    for source in build_cuda.sources():
        toolkit.compile(source)
        build_cuda.log_of(source).write_text("")
    for folder in ("sm80", "sm90"):
        log = build_cuda.log_of(build_cuda.SOURCES / folder / "fwd" / "d64.cu")
        log.write_text("".join(f"Compiling entry function '{folder}_fwd_{d}' for 'sm'\nUsed 9\n"
                               for d in (64, 128)))  # fmt: skip
    source, name = build_cuda.find_kernel("fwd", "64", architecture=90)
    assert (source.parent.parent.name, name) == ("sm90", "sm90_fwd_64")
    with pytest.raises(SystemExit, match="sm_80 with fwd in .*: sm80_fwd_64, sm80_fwd_128; exp"):
        build_cuda.find_kernel("fwd")
    with pytest.raises(SystemExit, match="none; expected one: make build"):
        build_cuda.find_kernel("bwd")


def test_the_oldest_architecture_is_reported(tree: Path) -> None:
    """Of a kernel that is compiled for several."""
    source = build_cuda.SOURCES / "fwd.cu"
    build_cuda.Toolkit().compile(source)
    parts = [f"Compiling entry function 'fwd' for 'sm_{n}'\nUsed {n}\n" for n in (80, 90)]
    for log in ("".join(parts), "".join(parts[::-1])):
        build_cuda.log_of(source).write_text(log)
        assert "Used 80" in build_cuda.kernels_of(source)["fwd"]
