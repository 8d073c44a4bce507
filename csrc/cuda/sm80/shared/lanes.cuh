// Reductions over lanes of a warp.
#pragma once

namespace diffattn::cuda::sm80 {

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

}  // namespace diffattn::cuda::sm80
