// The online softmax of one warp's rows for one component, on accumulator fragments.
#pragma once
#include "mma.cuh"
#include "problem.cuh"

namespace diffattn::cuda {

// The reference that exponents are taken from need not be the row's maximum. When it is set, it is
// set kHeadroom above the maximum (log2), and it stays until some P reaches kLimit: most steps need
// neither a reduction over lanes nor a rescale of O.
constexpr float kLimit = 2;  // of P, and of what a lane adds up in a step

// From here on an ulp of an fp32 reference is 2 or more, and P would leave its range, because
// scale·S - reference is rounded once where the reference has been rounded before. Rows whose reference
// would be as great are *far*: P = exp2((S - origin)·scale), where origin is the greatest S so far.
constexpr float kFarFrom = 1 << 24;
// The reference of a far row. With it, as with -FLT_MAX, the reference of a row without keys, every P overflows.
// So each step of a far row calls raise(), and no step of other rows has to ask whether rows are far.
constexpr float kFar = -0x1.fffffcp127f;

// Sum and maximum over the four lanes that share a row.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// What the exponents of a row are taken from: P = exp2((S - origin)·scale - reference). Of origin and
// reference one is zero.
struct Base {
  float origin, reference;
};

// Logits in log2 units are scale·s; scale > 0. Origins keeps what only far rows have, for each of this lane's
// rows: float& operator()(row tile, half).
template <int kRowTiles>
struct Softmax {
  float scale;
  float reference[kRowTiles][2];  // [row tile, row g or g + 8]   log2, the same in the quad
  // An accumulator, of this lane's keys. Even columns: the sum of P as the product with V takes it,
  // which normalises, so that a rounded row still sums to one. Odd columns: the sum of P before
  // rounding, for the LSE.
  float sums[kRowTiles][4];

  __device__ float rounded_sum(int m, int half) const { return quad_sum(sums[m][2 * half]); }
  __device__ float exact_sum(int m, int half) const { return quad_sum(sums[m][2 * half + 1]); }

  // The logits carry the sign of a negative scale. A scale of zero would make 0·inf of a hidden pair.
  __device__ explicit Softmax(double softmax_scale)
      : scale(::fmaxf(::fabsf(float(softmax_scale)) * float(M_LOG2E), 1e-30f)) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        reference[m][half] = -FLT_MAX;
        sums[m][2 * half] = sums[m][2 * half + 1] = 0;
      }
  }

  // P = exp2(scale·S - reference), rounded, as operands A of the product with V, and the sums over
  // this lane's columns before rounding.
  template <class Element, int kKeyTiles>
  __device__ void exponentiate(const float (&s)[kRowTiles][kKeyTiles][4],
                               uint32_t (&p)[kRowTiles][kKeyTiles / 2][4],
                               float (&exact)[kRowTiles][2]) const {
    exponentiate_by<Element>(s, p, exact, [&](int m, int half) {
      return [scale = scale, from = reference[m][half]](float x) { return fmaf(x, scale, -from); };
    });
  }

  // The same where some rows are far; those that are not get the same bits.
  template <class Element, int kKeyTiles, class Origins>
  __device__ void exponentiate_raised(const float (&s)[kRowTiles][kKeyTiles][4],
                                      uint32_t (&p)[kRowTiles][kKeyTiles / 2][4],
                                      float (&exact)[kRowTiles][2], const Origins& origins) const {
    exponentiate_by<Element>(s, p, exact, [&](int m, int half) {
      const Base from = base(m, half, origins);
      return
          [scale = scale, from](float x) { return fmaf(x - from.origin, scale, -from.reference); };
    });
  }

  // Whether some P of this warp may have reached the limit.
  __device__ static bool outgrown(const float (&exact)[kRowTiles][2]) {
    float greatest = fmaxf(exact[0][0], exact[0][1]);
#pragma unroll
    for (int m = 1; m < kRowTiles; ++m) greatest = fmaxf(greatest, fmaxf(exact[m][0], exact[m][1]));
    return __any_sync(0xffffffffu, greatest >= kLimit);
  }

  // Sets the references of the rows that have outgrown theirs; factor is what O has to be multiplied
  // by. Other rows keep their bits, because no row's result may depend on its neighbours.
  template <class Element, int kKeyTiles, class Origins>
  __device__ void raise(const float (&s)[kRowTiles][kKeyTiles][4],
                        const float (&exact)[kRowTiles][2], float (&factor)[kRowTiles][2],
                        Origins&& origins) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float greatest = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n)
          greatest = fmaxf(greatest, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        greatest = quad_max(greatest);
        const float needed = greatest * scale + Half<Element>::kHeadroom;
        const bool outgrown = quad_max(exact[m][half]) >= kLimit;
        float raised = outgrown ? needed : reference[m][half];
        float step = reference[m][half] - raised;
        if (outgrown && (fabsf(needed) >= kFarFrom || reference[m][half] == kFar)) {
          step = raise_far<Element>(m, half, greatest, origins);
          raised = reference[m][half];
        }
        factor[m][half] = exp2f(step);
        reference[m][half] = raised;
        sums[m][2 * half] *= factor[m][half];
        sums[m][2 * half + 1] *= factor[m][half];
      }
  }

  // A far row's reference in the form of other rows' references, as precise as fp32 is; log2.
  template <class Origins>
  __device__ float level(int m, int half, const Origins& origins) const {
    return log2_sum_of(m, half, 0, origins);
  }

  // The LSE of a row, in log2 units, from the logarithm of its sum.
  template <class Origins>
  __device__ float log2_sum_of(int m, int half, float log2_sum, const Origins& origins) const {
    const Base from = base(m, half, origins);
    return fmaf(from.origin, scale, from.reference + log2_sum);
  }

  // Adds up P. A rounded block is summed by the tensor core, as a product with a matrix whose first
  // column is ones (its odd columns are zeros and leave the exact sums alone), or by unpacking it:
  // the former costs tensor time, the latter issue slots. by_product(row tile, key block) chooses.
  template <class Element, int kKeyBlocks, class ByProduct>
  __device__ void add(const float (&exact)[kRowTiles][2],
                      const uint32_t (&p)[kRowTiles][kKeyBlocks][4], int lane,
                      const ByProduct& by_product) {
    const uint32_t ones = lane < 4 ? Half<Element>::kOnes : 0;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kKeyBlocks; ++n)
        if (by_product(m, n))
          mma<Element>(sums[m], p[m][n], ones, ones);
        else
          add_unpacked<Element>(sums[m], p[m][n]);
#pragma unroll
      for (int half = 0; half < 2; ++half) sums[m][2 * half + 1] += exact[m][half];
    }
  }

 private:
  // exponent(row tile, half) returns the function from a score of that row to its exponent.
  template <class Element, int kKeyTiles, class Exponent>
  __device__ static void exponentiate_by(const float (&s)[kRowTiles][kKeyTiles][4],
                                         uint32_t (&p)[kRowTiles][kKeyTiles / 2][4],
                                         float (&exact)[kRowTiles][2], const Exponent& exponent) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto of = exponent(m, half);
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
          const float low = exp2f(of(s[m][n][2 * half])), high = exp2f(of(s[m][n][2 * half + 1]));
          exact[m][half] = n == 0 ? low : exact[m][half] + low;
          exact[m][half] += high;
          p[m][n / 2][n % 2 * 2 + half] = Half<Element>::pack(low, high);
        }
      }
  }

  template <class Origins>
  __device__ Base base(int m, int half, const Origins& origins) const {
    const bool far = reference[m][half] == kFar;
    return {far ? origins(m, half) : 0.f, far ? 0.f : reference[m][half]};
  }

  // For a row that becomes far, is far already, or was far before an ordinary score. Returns the logarithm of its
  // factor.
  template <class Element, class Origins>
  __device__ float raise_far(int m, int half, float greatest, Origins&& origins) {
    const Base from = base(m, half, origins);
    if (reference[m][half] == kFar) greatest = fmaxf(greatest, from.origin);
    const float needed = greatest * scale + Half<Element>::kHeadroom;
    const bool far = fabsf(needed) >= kFarFrom;
    if (far) origins(m, half) = greatest;
    reference[m][half] = far ? kFar : needed;
    return fmaf(from.origin - (far ? greatest : 0.f), scale, from.reference - (far ? 0.f : needed));
  }

  template <class Element>
  __device__ static void add_unpacked(float (&sums)[4], const uint32_t (&p)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Half<Element>::unpack(p[i]);
      sums[i % 2 * 2] += pair.x;
      sums[i % 2 * 2] += pair.y;
    }
  }
};

// Hides the pairs that the mask does not let through, and gives the logits the sign of a negative scale.
template <int kRowTiles, int kKeyTiles>
__device__ void hide(float (&s)[kRowTiles][kKeyTiles][4], const KeyInterval& mask, int first_row,
                     int first_key, float sign, int lane) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + m * 16 + half * 8 + lane / 4;
      const int begin = mask.begin(row) - first_key, end = mask.end(row) - first_key;
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

}  // namespace diffattn::cuda
