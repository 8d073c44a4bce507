// A barrier of part of a CTA.
#pragma once

namespace diffattn::cuda::sm80 {

// The one instruction that is spelled out here: CUTLASS has it from sm_90 on, and CUDA's builtin is
// the form for warps that may have diverged, which costs a dozen instructions more.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

}  // namespace diffattn::cuda::sm80
