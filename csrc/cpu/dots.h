// Inner products of one row with several: numbers of the rows are lanes, so nothing is transposed.
#pragma once
#include <utility>

#include "exp2.h"

namespace diffattn::cpu {
namespace {

template <class C>
struct Lanes {
  using V = typename Simd<C>::V;
  static constexpr int W = Simd<C>::W;

  // Of each run of S lanes: the lower (upper: S / 2 on) half of a's, then that of b's.
  template <int S, int upper, int... I>
  static V halves(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I + upper + (I % S < S / 2 ? 0 : W - S / 2))...);
#else
    typedef typename Exp2<C>::Int Mask __attribute__((vector_size(kVectorBytes)));
    return __builtin_shuffle(a, b, Mask{(I + upper + (I % S < S / 2 ? 0 : W - S / 2))...});
#endif
  }

  // Lane i of the result is the sum of the lanes of v[i]. Each step adds the halves of runs of S
  // lanes and puts two vectors into one.
  template <int S = W>
  static V sums(V (&v)[W]) {
    constexpr std::make_integer_sequence<int, W> lanes;
#pragma GCC unroll 8
    for (int i = 0; i < S / 2; ++i)
      v[i] = halves<S, 0>(v[i], v[i + S / 2], lanes) + halves<S, S / 2>(v[i], v[i + S / 2], lanes);
    if constexpr (S > 2)
      return sums<S / 2>(v);
    else
      return v[0];
  }
};

// out[j] = ⟨a, row j⟩ for j < n <= W, with row j at rows + j·stride. d is a multiple of W; out has
// room for a whole vector.
template <class C>
void dots(int64_t d, const C* a, const C* rows, int64_t stride, int64_t n, C* out) {
  using S = Simd<C>;
  const C* row[S::W];
#pragma GCC unroll 16
  for (int i = 0; i < S::W; ++i) row[i] = rows + (i < n ? i : n - 1) * stride;
  typename S::V acc[S::W] = {};
  for (int64_t k = 0; k < d; k += S::W) {
    const auto x = S::load(a + k);
#pragma GCC unroll 16
    for (int i = 0; i < S::W; ++i) acc[i] += x * S::load(row[i] + k);
  }
  S::store(out, Lanes<C>::sums(acc));
}

}  // namespace
}  // namespace diffattn::cpu
