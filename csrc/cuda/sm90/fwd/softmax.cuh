// The online softmax of a warp's 16 rows for one map.
//
// It differs from sm_80's in the order: whether references have to be raised is known before the first P, from a
// maximum of each lane's scores. So P may take the place of S in registers, while the product with the P before it
// still runs.
#pragma once
#include "../../common/softmax.cuh"
#include "place.cuh"

namespace diffattn::cuda::sm90 {

using Rows = float[1][2];

// The origins of a lane's far rows (Softmax). No other lane reads them.
template <class T>
struct SharedOrigins {
  float* first;  // [half, thread]

  __device__ explicit SharedOrigins(char* smem)
      : first(reinterpret_cast<float*>(smem + T::kOrigins) + Seat<T>::thread()) {}
  __device__ float& operator()(int, int half) const { return first[half * T::kConsumerThreads]; }
};

template <class Element>
struct Softmax : cuda::Softmax<1> {
  // What exponents are taken from: the reference, or zero in a far row, whose scores have lost their origin.
  Rows from;

  __device__ explicit Softmax(double softmax_scale) : cuda::Softmax<1>(softmax_scale) {
    set_from();
  }

  // Whether some P of this warp would reach the limit. Then grown says of each row whether it is one, in the form
  // that raise() expects.
  template <int kKeyTiles>
  __device__ bool outgrown(const float (&s)[1][kKeyTiles][4], Rows& grown) const {
    float exponent[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float greatest = s[0][0][2 * half];
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
        greatest = fmaxf(greatest, fmaxf(s[0][n][2 * half], s[0][n][2 * half + 1]));
      exponent[half] = fmaf(greatest, scale, -reference[0][half]);
      grown[0][half] = exponent[half] >= kLogOfLimit ? kLimit : 0;
    }
    return __any_sync(0xffffffffu, fmaxf(exponent[0], exponent[1]) >= kLogOfLimit);
  }

  // After references were raised. Makes ordinary scores of those of far rows: their origin is taken off before P is
  // computed.
  template <int kKeyTiles, class Origins>
  __device__ void take_off_origins(float (&s)[1][kKeyTiles][4], const Origins& origins) {
    set_from();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float origin = reference[0][half] == kFar ? origins(0, half) : 0.f;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) s[0][n][i] -= origin;
    }
  }

  // P in the place of S, and the sums over this lane's columns before rounding.
  template <int kKeyTiles>
  __device__ void exponentiate(float (&s)[1][kKeyTiles][4], Rows& exact) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        float &low = s[0][n][2 * half], &high = s[0][n][2 * half + 1];
        low = exp2f(fmaf(low, scale, -from[0][half]));
        high = exp2f(fmaf(high, scale, -from[0][half]));
        exact[0][half] = n == 0 ? low : exact[0][half] + low;
        exact[0][half] += high;
      }
    }
  }

  // P rounded, as operand A of the product with V.
  template <int kKeyTiles>
  __device__ static void round(const float (&s)[1][kKeyTiles][4],
                               uint32_t (&p)[1][kKeyTiles / 2][4]) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        p[0][n / 2][n % 2 * 2 + half] =
            Half<Element>::pack(s[0][n][2 * half], s[0][n][2 * half + 1]);
  }

 private:
  static constexpr float kLogOfLimit = 1;
  static_assert(kLimit == 2);

  __device__ void set_from() {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      from[0][half] = reference[0][half] == kFar ? 0.f : reference[0][half];
  }
};

}  // namespace diffattn::cuda::sm90
