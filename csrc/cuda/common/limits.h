// The largest sizes that the kernels of every architecture can count.
#pragma once
#include "../../diffattn.h"
#include "error.h"

namespace diffattn::cuda {

// Kernels keep positions in 32 bits, with room for a window on either side.
constexpr int64_t kMaxSeqlen = kMostLength;
constexpr int64_t kMaxCtas = (int64_t(1) << 31) - 1;

inline void check_shape(DType dtype, const Shape& shape) {
  if (dtype != DType::f16 && dtype != DType::bf16)
    throw std::runtime_error("diffattn: on CUDA tensors are float16 or bfloat16");
  check_size("headdim", shape.headdim, kMostHeaddim);
  check_size("seqlen_q", shape.seqlen_q, kMaxSeqlen);
  check_size("seqlen_k", shape.seqlen_k, kMaxSeqlen);
}

}  // namespace diffattn::cuda
