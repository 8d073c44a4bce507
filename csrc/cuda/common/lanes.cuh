// Shuffles between the lanes of a warp: reductions, and numbers kept in registers.
#pragma once

namespace diffattn::cuda {

// The sum over kLanes neighbouring lanes; each of them gets it.
template <int kLanes>
__device__ float sum_over(float x) {
#pragma unroll
  for (int i = kLanes / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}

// The maximum over them.
template <int kLanes>
__device__ float max_over(float x) {
#pragma unroll
  for (int i = kLanes / 2; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
  return x;
}

// Hides from the compiler how x was computed: to save a register it would compute x again in each step.
__device__ inline int keep(int x) { return __shfl_sync(0xffffffffu, x, threadIdx.x % 32); }

// The same for a number that is equal in all lanes. The compiler learns this too, and keeps it in a uniform
// register instead of one of each lane.
__device__ inline int keep_uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

}  // namespace diffattn::cuda
