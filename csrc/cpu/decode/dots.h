// Inner products of one row with several: numbers of the rows are lanes, so nothing is transposed.
#pragma once
#include <utility>

#include "../shared/exp2.h"
#include "reader.h"

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

  // op over all lanes of v, in every lane.
  template <int S = W, class Op>
  static V reduce(V v, const Op& op) {
    constexpr std::make_integer_sequence<int, W> lanes;
    v = op(halves<S, 0>(v, v, lanes), halves<S, S / 2>(v, v, lanes));
    if constexpr (S > 2) return reduce<S / 2>(v, op);
    return v;
  }
  static C max(V v) { return reduce(v, Simd<C>::max)[0]; }
  static C sum(V v) {
    return reduce(v, [](V a, V b) { return a + b; })[0];
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

// out[j] = ⟨a, row j⟩ for j < n <= W, read by `reader`. d is a multiple of 2·W; out has room for a whole
// vector. Calls between() after each piece of arithmetic. Not inlined: in a larger function the pointers of
// its rows would not stay in registers.
template <bool whole, class C, class Reader, class F>
__attribute__((noinline)) void dots(Reader reader, int64_t d, const C* a,
                                    Rows<const typename Reader::T> rows, int64_t n, C* out,
                                    const F& between) {
  using S = Simd<C>;
  typename S::V acc[S::W] = {};
  for (int64_t k = 0; k < d; k += 2 * S::W) {
    const auto a0 = S::load(a + k), a1 = S::load(a + k + S::W);
#pragma GCC unroll 16
    for (int i = 0; i < S::W; ++i) {
      typename S::V x[2];
      reader.load(rows[whole || i < n ? i : n - 1] + k, x);
      acc[i] += a0 * x[0];
      acc[i] += a1 * x[1];
    }
    between();
  }
  S::store(out, Lanes<C>::sums(acc));
}

}  // namespace
}  // namespace diffattn::cpu
