// The two 8-bit formats of PTX (ISA 5.2.3): .e4m3 without infinities, whose only NaN is 0x7f, and .e5m2, the upper byte
// of a half. Both lie on the bits of a half: e4m3's, seven places up, are those of its value divided by 256.
#pragma once

#include <algorithm>

#include "fp.h"

namespace ptxsim {

struct E4m3 { u8 bits; };
struct E5m2 { u8 bits; };

inline float to_float(E4m3 x) {
    if ((x.bits & 0x7f) == 0x7f) return bit_cast<float>(0x7fffffffu);
    return 256 * to_float(Half{static_cast<u16>((x.bits & 0x80) << 8 | (x.bits & 0x7f) << 7)});
}
inline float to_float(E5m2 x) { return to_float(Half{static_cast<u16>(x.bits << 8)}); }

// To nearest even under .satfinite: "if the value exceeds the destination's range, it becomes the maximum normal value
// of its sign"; NaN becomes the canonical NaN.
inline void store_nearest(float x, E4m3& out) {
    double nearest = round_to_format(x, 3, -6, 8, Rounding::Nearest);
    u16 half = half_bits(std::clamp(nearest, -448.0, 448.0) / 256);
    out.bits = x != x ? 0x7f : static_cast<u8>((half & 0x8000) >> 8 | (half & 0x7fff) >> 7);
}
inline void store_nearest(float x, E5m2& out) {
    double nearest = round_to_format(x, 2, -14, 15, Rounding::Nearest);
    u16 half = half_bits(std::clamp(nearest, -57344.0, 57344.0));
    out.bits = x != x ? 0x7f : static_cast<u8>(half >> 8);
}

}  // namespace ptxsim
