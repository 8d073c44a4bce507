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

  // Every second lane of a followed by b: the even or the odd ones.
  template <int first, int... I>
  static V halve(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * I + first)...);
#else
    typedef typename Exp2<C>::Int Mask __attribute__((vector_size(kVectorBytes)));
    return __builtin_shuffle(a, b, Mask{(2 * I + first)...});
#endif
  }
  static V add_pairs(V a, V b) {
    constexpr std::make_integer_sequence<int, W> lanes;
    return halve<0>(a, b, lanes) + halve<1>(a, b, lanes);
  }

  // Lane i of the result is the sum of the lanes of v[i].
  static V sums(V (&v)[W]) {
#pragma GCC unroll 4
    for (int n = W; n > 1; n /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < n / 2; ++i) v[i] = add_pairs(v[2 * i], v[2 * i + 1]);
    return v[0];
  }
};

// out[j] = ⟨a, row j⟩ for j < n, with row j at rows + j·stride. d is a multiple of W. out has room
// for whole vectors.
template <class C>
void dots(int64_t d, const C* a, const C* rows, int64_t stride, int64_t n, C* out) {
  using S = Simd<C>;
  for (int64_t j = 0; j < n; j += S::W) {
    const int64_t last = n - 1;
    const C* row[S::W];
#pragma GCC unroll 16
    for (int i = 0; i < S::W; ++i) row[i] = rows + (j + i < last ? j + i : last) * stride;
    typename S::V acc[S::W] = {};
    for (int64_t k = 0; k < d; k += S::W) {
      const auto x = S::load(a + k);
#pragma GCC unroll 16
      for (int i = 0; i < S::W; ++i) acc[i] += x * S::load(row[i] + k);
    }
    S::store(out + j, Lanes<C>::sums(acc));
  }
}

}  // namespace
}  // namespace diffattn::cpu
