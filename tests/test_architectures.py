"""csrc/cuda/dispatch.cpp: which architecture serves a call; a new one is a folder and two lines.

The recipe of CONTRIBUTING is followed on a copy: a toy architecture, for devices from 9.0 on and
rows of up to 8 numbers, with a forward only. The kernels of sm_80 are not compiled with it: a table
of the same shape stands in for them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import build_cuda  # noqa: E402

TABLE = """
#include <cstdio>
#include "../kernels.h"
namespace diffattn::cuda {
const Kernels %s = {
    "%s",
    [](int capability) { return capability >= %d; },
    {[](const FwdParams& p) { return p.shape.headdim <= %d; },
     {nullptr, [](const FwdParams&, void*, CUstream_st*) { std::puts("forward of %s"); }}},
    %s
};
}
"""
STAND_IN = (
    "{[](const BwdParams&) { return true; }, "
    '{nullptr, [](const BwdParams&, void*, CUstream_st*) { std::puts("backward of sm80"); }}}, {}'
)
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <cuda_runtime_api.h>
#include "../diffattn.h"
static int capability = 0;
cudaError_t CUDARTAPI cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
  return cudaSuccess;
}
const char* CUDARTAPI cudaGetErrorString(cudaError_t) { return ""; }
int main(int, char** arguments) {
  capability = std::atoi(arguments[1]);
  diffattn::FwdParams fwd{};
  fwd.dtype = diffattn::DType::f16;
  fwd.shape.headdim = std::atoi(arguments[2]);
  diffattn::BwdParams bwd{};
  bwd.dtype = fwd.dtype;
  bwd.shape = fwd.shape;
  try {
    diffattn::cuda::choose(fwd).launch(fwd, nullptr, nullptr);
    diffattn::cuda::choose(bwd).launch(bwd, nullptr, nullptr);
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if build_cuda.find_nvcc() is None:
        pytest.skip("no nvcc")
    root = tmp_path_factory.mktemp("toy")
    cuda = root / "csrc" / "cuda"
    shutil.copytree(ROOT / "csrc" / "cuda" / "common", cuda / "common")
    for name in ("diffattn.h", "environment.h", "cuda/kernels.h", "cuda/dispatch.cpp"):
        shutil.copy(ROOT / "csrc" / name, root / "csrc" / name)

    follow_the_recipe(cuda)
    (cuda / "sm80").mkdir()
    (cuda / "sm80" / "kernels.cpp").write_text(
        TABLE % ("kSm80", "sm80", 80, 1 << 20, "sm80", STAND_IN)
    )
    (cuda / "program.cpp").write_text(PROGRAM)
    sources = ["dispatch.cpp", "toy/kernels.cpp", "sm80/kernels.cpp", "program.cpp"]
    made = root / "program"
    command = [build_cuda.Toolkit().nvcc, "-std=c++17", "-cudart", "none", "-o", str(made)]
    subprocess.run([*command, *(str(cuda / source) for source in sources)], check=True)
    return made


def follow_the_recipe(cuda: Path) -> None:
    """A folder with its table; its name in kernels.h and in dispatch.cpp's list."""
    (cuda / "toy").mkdir()
    (cuda / "toy" / "kernels.cpp").write_text(TABLE % ("kToy", "toy", 90, 8, "toy", "{}, {}"))
    for file, before, after in (
        ("kernels.h", "extern const Kernels kSm80;", "extern const Kernels kToy, kSm80;"),
        ("dispatch.cpp", "&kSm80}", "&kToy, &kSm80}"),
    ):
        text = (cuda / file).read_text()
        assert text.count(before) == 1
        (cuda / file).write_text(text.replace(before, after))


def served(program: Path, capability: int, headdim: int, asked: str = "") -> list[str]:
    environment = os.environ | {"DIFFATTN_CUDA_KERNELS": asked}
    command = [str(program), str(capability), str(headdim)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_new_architecture_serves_what_it_takes(program: Path) -> None:
    assert served(program, 90, 8) == ["forward of toy", "backward of sm80"]
    assert served(program, 90, 64) == ["forward of sm80", "backward of sm80"]
    assert served(program, 80, 8) == ["forward of sm80", "backward of sm80"]


def test_kernels_are_asked_for_by_name(program: Path) -> None:
    assert served(program, 90, 8, "SM80") == ["forward of sm80", "backward of sm80"]
    (refusal,) = served(program, 90, 64, "toy")
    assert refusal == ("DIFFATTN_CUDA_KERNELS is toy, accepted for this call on this GPU: sm80")


def test_an_old_gpu_is_refused(program: Path) -> None:
    (refusal,) = served(program, 75, 64)
    assert "compute capability 7.5" in refusal and "8.0 or later" in refusal
