// Errors of calls that CUDA, or a kernel, cannot serve.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace diffattn::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("diffattn: ") + what + ": " + cudaGetErrorString(status));
}

inline void check_size(const char* what, int64_t size, int64_t limit) {
  if (size <= limit) return;
  throw std::runtime_error("diffattn: " + std::string(what) + " is " + std::to_string(size) +
                           ", supported are at most " + std::to_string(limit));
}

}  // namespace diffattn::cuda
