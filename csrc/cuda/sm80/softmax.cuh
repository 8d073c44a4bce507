// The online softmax of one warp's rows for one component, on accumulator fragments.
#pragma once
#include "mma.cuh"
#include "problem.cuh"

namespace diffattn::cuda::sm80 {

// A row's maximum may lag behind by this much (log2): exp2 of the rest stays below 256, and most
// steps need neither a reduction over lanes nor a rescale of O.
constexpr float kLag = 8.f;

// Sum and maximum over the four lanes that share a row.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Logits in log2 units are scale·s; scale > 0.
template <int kRowTiles>
struct Softmax {
  float scale;
  float max[kRowTiles][2];  // [row tile, row g or g + 8]   in log2 units, the same in the quad
  float sum[kRowTiles][2];  // this lane's columns only

  __device__ explicit Softmax(float log2_scale) : scale(log2_scale) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) max[m][half] = -FLT_MAX, sum[m][half] = 0;
  }

  // The greatest logit among a lane's columns of each row, unscaled.
  template <int kKeyTiles>
  __device__ static void lane_max(const float (&s)[kRowTiles][kKeyTiles][4],
                                  float (&greatest)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = fmaxf(s[m][0][2 * half], s[m][0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < kKeyTiles; ++n)
          x = fmaxf(fmaxf(x, s[m][n][2 * half]), s[m][n][2 * half + 1]);
        greatest[m][half] = x;
      }
  }

  // Whether some row of this warp outgrew its maximum by more than the lag.
  __device__ bool outgrown(const float (&greatest)[kRowTiles][2]) const {
    bool mine = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        mine |= fmaf(greatest[m][half], scale, -max[m][half]) > kLag;
    return __any_sync(0xffffffffu, mine);
  }

  // Raises the maxima to those seen; factor is what O has to be multiplied by.
  __device__ void raise(const float (&greatest)[kRowTiles][2], float (&factor)[kRowTiles][2]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float raised = fmaxf(max[m][half], quad_max(greatest[m][half]) * scale);
        factor[m][half] = exp2f(max[m][half] - raised);
        max[m][half] = raised;
        sum[m][half] *= factor[m][half];
      }
  }

  // P = exp2(scale·S - max), rounded, as operands A of the product with V. The normaliser sums
  // what was rounded, so that the rounded row still sums to one.
  template <class Element, int kKeyTiles>
  __device__ void exponentiate(const float (&s)[kRowTiles][kKeyTiles][4],
                               uint32_t (&p)[kRowTiles][kKeyTiles / 2][4]) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float low = exp2f(fmaf(s[m][n][2 * half], scale, -max[m][half]));
          const float high = exp2f(fmaf(s[m][n][2 * half + 1], scale, -max[m][half]));
          const uint32_t pair = Half<Element>::pack(low, high);
          const float2 rounded = Half<Element>::unpack(pair);
          sum[m][half] += rounded.x + rounded.y;
          p[m][n / 2][n % 2 * 2 + half] = pair;
        }
  }
};

// Hides the pairs that no mask lets through, and gives the logits the sign of a negative scale.
template <int kRowTiles, int kKeyTiles>
__device__ void mask(float (&s)[kRowTiles][kKeyTiles][4], const Sight& sight, int first_row,
                     int first_key, float sign, int lane) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + m * 16 + half * 8 + lane / 4;
      const int begin = sight.begin(row) - first_key, end = sight.end(row) - first_key;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = n * 8 + lane % 4 * 2 + i;
          float& x = s[m][n][half * 2 + i];
          x = key >= begin && key < end ? x * sign : -INFINITY;
        }
    }
}

}  // namespace diffattn::cuda::sm80
