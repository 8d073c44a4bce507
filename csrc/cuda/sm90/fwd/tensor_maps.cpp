// Makes tensor maps by the driver's own function, which the runtime finds: nothing is linked against the driver.
#include "tensor_maps.h"

#include <cuda_runtime_api.h>

#include "../../common/limits.h"

namespace diffattn::cuda::sm90 {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void* base,
                            const cuuint64_t* sizes, const cuuint64_t* strides,
                            const cuuint32_t* box, const cuuint32_t* element_strides,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

constexpr int kRank = 4;  // column, row, head, batch
constexpr int kElementBytes = 2, kPanelCols = 64;
constexpr int64_t kStrideUnit = 16, kStrideLimit = int64_t(1) << 40;  // bytes
constexpr int64_t kMostRows = (int64_t(1) << 31) - 1;                 // coordinates are int32

// Null where the driver is older than CUDA 12.0.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                              12000, cudaEnableDefault, &result);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
  const bool is_there = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
  return is_there ? reinterpret_cast<Encode>(found) : nullptr;
}

Encode encode() {
  static const Encode found = find_encode();
  return found;
}

struct Sizes {
  int64_t cols, rows, heads, batch;
};

Sizes query_sizes(const FwdParams& p) {
  const bool packed = p.varlen.cu_seqlens_q != nullptr;
  return {p.shape.headdim, packed ? p.varlen.total_q : p.shape.seqlen_q, p.shape.nheads,
          packed ? 1 : p.shape.batch};
}
Sizes key_sizes(const FwdParams& p, int64_t cols) {
  const bool packed = p.varlen.cu_seqlens_k != nullptr;
  return {cols, packed ? p.varlen.total_k : p.shape.seqlen_k, p.shape.nheads_k,
          packed ? 1 : p.shape.batch};
}

bool is_describable(const View& v, const Sizes& n) {
  const auto fits = [](int64_t stride) { return stride * kElementBytes < kStrideLimit; };
  const bool rows_advance = v.row > 0 || n.rows == 1;
  return n.rows > 0 && n.rows <= kMostRows && rows_advance && fits(v.row) && fits(v.head) &&
         fits(v.batch);
}

// A dimension with stride 0 has one element, and kernels count 0 along it.
bool make_map(DType dtype, const View& v, const Sizes& n, int box_rows, CUtensorMap& map) {
  const auto size = [](int64_t size, int64_t stride) { return cuuint64_t(stride ? size : 1); };
  const auto bytes = [](int64_t stride) {
    return cuuint64_t(stride ? stride * kElementBytes : kStrideUnit);
  };
  const cuuint64_t sizes[kRank] = {cuuint64_t(n.cols), size(n.rows, v.row), size(n.heads, v.head),
                                   size(n.batch, v.batch)};
  const cuuint64_t strides[kRank - 1] = {bytes(v.row), bytes(v.head), bytes(v.batch)};
  const cuuint32_t box[kRank] = {kPanelCols, cuuint32_t(box_rows), 1, 1};
  const cuuint32_t every[kRank] = {1, 1, 1, 1};
  const auto type =
      dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode()(&map, type, kRank, v.data, sizes, strides, box, every,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool has_tensor_maps(const FwdParams& p) {
  return is_describable(p.maps[kSignal].q, query_sizes(p)) &&
         is_describable(p.maps[kSignal].k, key_sizes(p, p.shape.headdim)) &&
         is_describable(p.v, key_sizes(p, p.shape.headdim_v)) && encode() != nullptr;
}

bool make_tensor_maps(const FwdParams& p, TileRows rows, TensorMaps& maps) {
  bool made = make_map(p.dtype, p.v, key_sizes(p, p.shape.headdim_v), rows.keys, maps.v);
  for (int map : {kSignal, kNoise}) {
    const Map& of = p.maps[map];
    made = made && make_map(p.dtype, of.q, query_sizes(p), rows.queries, maps.q[map]) &&
           make_map(p.dtype, of.k, key_sizes(p, p.shape.headdim), rows.keys, maps.k[map]);
  }
  return made;
}

}  // namespace diffattn::cuda::sm90
