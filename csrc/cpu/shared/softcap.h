// The soft cap on scores, c·tanh(s·QKᵀ / c), and its slope, which backward multiplies with.
#pragma once
#include "mask.h"

namespace diffattn::cpu {
namespace {

// Of x: tanh(x), and 1 - tanh²(x).
template <class C>
struct Tanh {
  typename Simd<C>::V value, slope;
};

// With e = 2^a, a = -2·log2(e)·|x|: tanh|x| = (1 - e) / (1 + e), slope 4·e / (1 + e)². 2^n·(1 + g) is e as in
// exp2(). So 1 - e is a sum of -2^n·g and 1 - 2^n, which is zero for small x, and no digit of x is lost there. The
// slope is right to its last digits where tanh² is nearly 1. NaN stays NaN.
template <class C>
inline Tanh<C> tanh_of(typename Simd<C>::V x) {
  using S = Simd<C>;
  using V = typename S::V;
  using E = Exp2<C>;
  const V zero = {}, a = (x < zero ? x : -x) * C(2 * kLog2e<double>);
  const V rounded = a + E::kRound;
  const V f = a - (rounded - E::kRound);
  constexpr int degree = sizeof(E::c) / sizeof(C) - 1;
  V g = S::set(E::c[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 1; --i) g = g * f + E::c[i];
  const V power = whole_power<C>(rounded), rest = power * (g * f);
  const auto saturated = a < S::set(E::kLowest);
  const V e = saturated ? zero : power + rest;
  const V less = saturated ? S::set(1) : (1 - power) - rest;
  const V inverse = 1 / (1 + e), magnitude = less * inverse;
  return {x < zero ? -magnitude : magnitude, 4 * e * inverse * inverse};
}

// What tanh is multiplied by, for scores in log2 units.
template <class C>
inline C cap_factor(double softcap) {
  return C(softcap * kLog2e<double>);
}

// Numbers that score_factor() has made become scores, of the keys that LaneMask has set as seen. f(key, lane, slope)
// gets the slopes of a vector of lanes.
template <class C, class F>
void cap_scores(Panel<C> scores, const Range* seen, double softcap, const F& f) {
  using S = Simd<C>;
  const C cap = cap_factor<C>(softcap);
  for (int64_t r = 0; r < scores.lanes; r += S::W) {
    const Range keys = seen[r / NR<C>];
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const Tanh<C> t = tanh_of<C>(S::load(scores[j] + r));
      S::store(scores[j] + r, cap * t.value);
      f(j, r, t.slope);
    }
  }
}

}  // namespace
}  // namespace diffattn::cpu
