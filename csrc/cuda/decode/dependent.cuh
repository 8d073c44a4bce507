// Dependent launches: on sm_90 a kernel of a call begins while the one before it ends, so that nothing waits for its
// launch. What the one before writes, or reads and this one writes, it touches only after it has waited.
#pragma once
#include "../common/error.h"
#include "decode.h"

namespace diffattn::cuda::decoding {

// Whether code is compiled for a device that has such launches. On others these functions do nothing.
#if __CUDA_ARCH__ >= 900
constexpr bool kMayDepend = true;
#else
constexpr bool kMayDepend = false;
#endif

// The next kernel may begin, once each CTA of this one has come here or has ended.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Until the kernel before has ended and all that it wrote is visible. A kernel that was launched as usual has nothing
// to wait for.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

template <class... Params, class... Args>
void start(const char* what, void (*kernel)(Params...), int64_t ctas, unsigned threads, int smem,
           const Launch& launch, const Args&... args) {
  cudaLaunchAttribute dependent;
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(ctas));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = size_t(smem);
  config.stream = launch.stream;
  config.attrs = &dependent;
  config.numAttrs = launch.dependent;
  check(cudaLaunchKernelEx(&config, kernel, args...), what);
}

}  // namespace diffattn::cuda::decoding
