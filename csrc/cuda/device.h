// What every kernel here asks of the device and of the sizes it is given.
#pragma once
#include "../diffattn.h"
#include "error.h"

namespace diffattn::cuda {

// Kernels keep positions in 32 bits, with room for a window on either side.
constexpr int64_t kMaxSeqlen = int64_t(1) << 29;
constexpr int64_t kMaxCtas = (int64_t(1) << 31) - 1;
constexpr int64_t kMaxHeadDim = 128;

inline void check_device() {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
  if (major >= 8) return;
  throw std::runtime_error("diffattn: this GPU has compute capability " + std::to_string(major) +
                           "." + std::to_string(minor) + ", the kernels need 8.0 or later");
}

inline void check_shape(DType dtype, const Shape& shape) {
  if (dtype != DType::f16 && dtype != DType::bf16)
    throw std::runtime_error("diffattn: on CUDA tensors are float16 or bfloat16");
  check_size("headdim", shape.headdim, kMaxHeadDim);
  check_size("seqlen_q", shape.seqlen_q, kMaxSeqlen);
  check_size("seqlen_k", shape.seqlen_k, kMaxSeqlen);
}

}  // namespace diffattn::cuda
