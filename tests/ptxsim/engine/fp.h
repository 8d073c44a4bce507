// Floating-point values and their corner cases: halves, flushes, canonical NaNs, roundings.
#pragma once

#include <cfenv>
#include <cmath>
#include <limits>

#include "base.h"

namespace ptxsim {

struct Half { u16 bits; };
struct Bfloat { u16 bits; };

// PTX ISA 9.7.3: "subnormal inputs and results are flushed to sign-preserving zero" under .ftz.
inline float flush(float x) {
    u32 bits = bit_cast<u32>(x);
    return (bits & 0x7f800000u) == 0 ? bit_cast<float>(bits & 0x80000000u) : x;
}
inline double flush(double x) { return x; }

// "NaN results are canonical": 0x7fffffff in single precision.
inline float canonical(float x) { return x != x ? bit_cast<float>(0x7fffffffu) : x; }
inline double canonical(double x) { return x; }

inline float to_float(Half h) { return static_cast<float>(bit_cast<_Float16>(h.bits)); }
inline float to_float(Bfloat b) { return bit_cast<float>(static_cast<u32>(b.bits) << 16); }

// How a real number becomes a narrower one.
enum class Rounding : u8 { Nearest, Zero, Down, Up, NearestAway };

// Rounds a double to a format of `mantissa` explicit bits, exponent range [min_exponent, max_exponent] of normal
// numbers, and returns the value (exact as a double). Overflow gives infinity or the largest finite, as the rounding
// says.
double round_to_format(double x, int mantissa, int min_exponent, int max_exponent, Rounding rounding);

inline u16 half_bits(double x, Rounding r = Rounding::Nearest) {
    if (x != x) return 0x7fff;
    if (r == Rounding::Nearest) return bit_cast<u16>(static_cast<_Float16>(x));
    return bit_cast<u16>(static_cast<_Float16>(round_to_format(x, 10, -14, 15, r)));
}
inline u16 bfloat_bits(double x, Rounding r = Rounding::Nearest) {
    if (x != x) return 0x7fff;
    float f = static_cast<float>(round_to_format(x, 7, -126, 127, r));
    return static_cast<u16>(bit_cast<u32>(f) >> 16);
}
// The common case, single to bfloat to nearest even, in integers.
inline u16 bfloat_from_float(float x) {
    u32 bits = bit_cast<u32>(x);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return static_cast<u16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
}
inline u16 half_from_float(float x) { return x != x ? 0x7fff : bit_cast<u16>(static_cast<_Float16>(x)); }

// Runs f under a hardware rounding mode; f must not be inlined into code compiled for another mode.
class RoundingScope {
  public:
    explicit RoundingScope(Rounding r) : saved_(std::fegetround()) {
        std::fesetround(r == Rounding::Zero   ? FE_TOWARDZERO
                        : r == Rounding::Down ? FE_DOWNWARD
                        : r == Rounding::Up   ? FE_UPWARD
                                              : FE_TONEAREST);
    }
    ~RoundingScope() { std::fesetround(saved_); }

  private:
    int saved_;
};

// .sat: "clamps the result to [0.0, 1.0]; NaN results are flushed to +0.0".
template <class T>
inline T saturate(T x) {
    return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
}

}  // namespace ptxsim
