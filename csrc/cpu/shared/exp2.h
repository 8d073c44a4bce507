// 2^x on vectors: x = n + f with n whole and |f| <= 1/2, a minimax polynomial for 2^f, and n put
// into the exponent. The relative error stays within 2 units in the last place; results below the
// smallest normal number become 0; NaN stays NaN. For x up to 127; a score never exceeds its maximum,
// so callers have x <= 0.
#pragma once
#include <type_traits>

#include "simd.h"

namespace diffattn::cpu {
namespace {

template <class C>
struct Exp2;

template <>
struct Exp2<float> {
  using Int = int32_t;
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLowest = -126.f;
  static constexpr float c[] = {1.f,
                                0.69314720670283259577f,
                                0.24022650922288758071f,
                                0.055503272266703020589f,
                                0.0096180566785246380754f,
                                0.001340042817761583794f,
                                0.00015461444698569129083f};
};

template <>
struct Exp2<double> {
  using Int = int64_t;
  static constexpr double kRound = 6755399441055744.;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLowest = -1022.;
  static constexpr double c[] = {1.,
                                 0.69314718055994530835,
                                 0.24022650695910071228,
                                 0.055504108664821698992,
                                 0.0096181291076284830543,
                                 0.0013333558146390352775,
                                 0.00015403530393362755291,
                                 0.000015252733856293466416,
                                 1.3215486815999976975e-6,
                                 1.017805119296064896e-7,
                                 7.0548943863483480445e-9,
                                 4.4566753410492058782e-10,
                                 2.5733568308756891235e-11};
};

// 2^n as a vector, for a whole number n to which kRound has been added: the low bits of `rounded` hold it.
template <class C>
inline typename Simd<C>::V whole_power(typename Simd<C>::V rounded) {
  using E = Exp2<C>;
  // Unsigned, because the difference wraps where n is far under kLowest.
  typedef std::make_unsigned_t<typename E::Int> I __attribute__((vector_size(kVectorBytes)));
  return (typename Simd<C>::V)(((I)rounded - (I)Simd<C>::set(E::kRound) + E::kBias)
                               << E::kMantissa);
}

template <class C>
inline typename Simd<C>::V exp2(typename Simd<C>::V x) {
  using S = Simd<C>;
  using V = typename S::V;
  using E = Exp2<C>;
  const V rounded = x + E::kRound;
  const V f = x - (rounded - E::kRound);
  constexpr int degree = sizeof(E::c) / sizeof(C) - 1;
  V p = S::set(E::c[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) p = p * f + E::c[i];
  // Multiplying by 2^n, rather than adding to p's exponent, lets a NaN through.
  const V power = whole_power<C>(rounded);
  const V zero = {};
  return x < S::set(E::kLowest) ? zero : p * power;
}

}  // namespace
}  // namespace diffattn::cpu
