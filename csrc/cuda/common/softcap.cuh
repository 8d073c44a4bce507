// The soft cap on scores, c·tanh(s·QKᵀ / c), and its slope.
#pragma once
#include <cuda_runtime.h>

#include <cmath>

namespace diffattn::cuda {

// The traits of a kernel whose scores are capped. It is a kernel of its own, so that others pay nothing.
template <class Traits>
struct Capped : Traits {
  static constexpr bool kCapped = true;
};

// Of x: tanh(x), and 1 - tanh²(x).
struct Tanh {
  float value, slope;
};

// By e = exp(-2|x|); tanh.approx has an error of 2^-11, which c multiplies. For small x the difference 1 - e has lost
// digits, and the series of tanh takes its place: within 4e-7 of the value anywhere.
__device__ inline Tanh tanh_of(float x) {
  constexpr float kSmall = 0.25f;
  const float size = fabsf(x), square = x * x;
  const float e = exp2f(size * float(-2 * M_LOG2E));
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1 + e));
  float series = fmaf(square, -17.f / 315, 2.f / 15);
  series = fmaf(square, series, -1.f / 3);
  series = fmaf(x * square, series, x);
  const float value = size < kSmall ? series : copysignf((1 - e) * inverse, x);
  return {value, 4 * e * inverse * inverse};
}

// What makes a product of a query and a key the argument of tanh.
__device__ inline float cap_factor(double softmax_scale, double softcap) {
  return float(softmax_scale) / float(softcap);
}

// The products of a tile become tanh(s·QKᵀ / c). They are the scores of a softmax whose scale is c.
template <int kRowTiles, int kKeyTiles>
__device__ void cap_scores(float (&s)[kRowTiles][kKeyTiles][4], float factor) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = tanh_of(s[m][n][i] * factor).value;
}

}  // namespace diffattn::cuda
