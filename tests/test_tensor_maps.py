"""csrc/cuda/sm90/fwd/tensor_maps.cpp: what a driver is told of a call's tensors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import build_cuda  # noqa: E402

PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#include "tensor_maps.h"
using namespace diffattn;
static int age = 0;  // 0: a driver that encodes; 1: one that refuses; 2: one that cannot
static CUresult encode(CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void*,
                       const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                       const cuuint32_t* every, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  std::printf("%d %d", type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, swizzle);
  for (unsigned i = 0; i < rank; ++i)
    std::printf(" %ld/%ld/%d/%d", long(sizes[i]), i ? long(strides[i - 1]) : 2, int(box[i]),
                int(every[i]));
  std::puts("");
  return age == 1 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
cudaError_t find(const char* name, void** function, cudaDriverEntryPointQueryResult* result) {
  const bool found = age < 2 && !std::strcmp(name, "cuTensorMapEncodeTiled");
  *function = found ? reinterpret_cast<void*>(&encode) : nullptr;
  *result = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
#if CUDART_VERSION >= 12050
cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
    unsigned long long, cudaDriverEntryPointQueryResult* result) {
  return find(name, function, result);
}
#else
cudaError_t CUDARTAPI cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                              cudaDriverEntryPointQueryResult* result) {
  return find(name, function, result);
}
#endif
int main(int, char** a) {
  age = std::atoi(a[1]);
  FwdParams p{};
  p.dtype = DType::bf16;
  p.shape = {3, 100, 200, 8, 4, 64, 128, 2};
  int32_t cu = 0;
  if (std::atoi(a[2])) p.varlen = {&cu, &cu, 1000, 2000};
  const auto view = [&](int64_t heads, int64_t cols) {
    return View{nullptr, std::atol(a[3]), std::atol(a[4]) * heads * cols, std::atol(a[5]) * cols};
  };
  for (Map& map : p.maps) map.q = view(8, 64), map.k = view(4, 64);
  p.v = view(4, 128);
  cuda::sm90::TensorMaps maps;
  if (!cuda::sm90::has_tensor_maps(p)) return std::puts("no maps"), 0;
  std::puts(cuda::sm90::make_tensor_maps(p, {128, 96}, maps) ? "made" : "refused");
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if build_cuda.find_nvcc() is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("maps")
    (folder / "program.cpp").write_text(PROGRAM)
    source, made = ROOT / "csrc/cuda/sm90/fwd/tensor_maps.cpp", folder / "program"
    command = [build_cuda.Toolkit().nvcc, "-std=c++17", "-cudart", "none", f"-I{source.parent}",
               str(source), str(folder / "program.cpp"), "-o", str(made)]  # fmt: skip
    subprocess.run(command, check=True)
    return made


def told(
    program: Path,
    driver: int = 0,
    packed: bool = False,
    batch: int = 10**6,
    row: int = 1,
    head: int = 1,
) -> list[str]:
    """Each map, and the end. Strides: of a batch in elements; of a row and a head, in units of
    those of a contiguous tensor."""
    command = [str(program), *map(str, (driver, int(packed), batch, row, head))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_dense_call(program: Path) -> None:
    """Sizes, strides in bytes, box, and a stride of elements; bf16, rows of 128 bytes swizzled."""
    v, *others, end = told(program)
    assert v == "1 3 128/2/64/1 200/1024/96/1 4/256/1/1 3/2000000/1/1"
    q, k = "64/2/64/1 100/1024/128/1 8/128/1/1", "64/2/64/1 200/512/96/1 4/128/1/1"
    assert others == [f"1 3 {x} 3/2000000/1/1" for x in (q, k, q, k)] and end == "made"


def test_a_packed_call_has_the_rows_of_all_sequences(program: Path) -> None:
    v, q, *_ = told(program, packed=True, batch=0)
    assert v == "1 3 128/2/64/1 2000/1024/96/1 4/256/1/1 1/16/1/1"
    assert q == "1 3 64/2/64/1 1000/1024/128/1 8/128/1/1 1/16/1/1"


def test_a_broadcast_dimension_has_one_element(program: Path) -> None:
    """Its stride is 0, which the encoder does not promise to take."""
    assert told(program, batch=0)[0].endswith(" 1/16/1/1")
    assert told(program, head=0)[0] == "1 3 128/2/64/1 200/1024/96/1 1/16/1/1 3/2000000/1/1"


@pytest.mark.parametrize("strides", [{"row": 0}, {"batch": 1 << 39}, {"row": 1 << 30}], ids=str)
def test_what_no_map_describes(program: Path, strides: dict[str, int]) -> None:
    assert told(program, **strides) == ["no maps"]


def test_the_longest_stride(program: Path) -> None:
    assert told(program, batch=(1 << 39) - 8)[-1] == "made"


def test_a_driver_that_refuses_or_is_too_old(program: Path) -> None:
    assert told(program, driver=1)[-1] == "refused" and told(program, driver=2) == ["no maps"]
