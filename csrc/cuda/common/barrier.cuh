// A barrier for some of a CTA's warps.
#pragma once

namespace diffattn::cuda {

// The only instructions written in PTX: CUTLASS has the first from sm_90 on, and CUDA's builtins are the forms
// for warps that may have diverged, which cost a dozen instructions more.
__device__ inline void named_barrier(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" : : "r"(id), "r"(threads) : "memory");
}

// The same; returns how many of the threads passed true.
__device__ inline int named_barrier_count(int id, int threads, bool yes) {
  int count;
  asm volatile(
      "{\n.reg .pred yes;\n"
      "setp.ne.s32 yes, %3, 0;\n"
      "barrier.red.popc.aligned.u32 %0, %1, %2, yes;\n}"
      : "=r"(count)
      : "r"(id), "r"(threads), "r"(int(yes))
      : "memory");
  return count;
}

}  // namespace diffattn::cuda
