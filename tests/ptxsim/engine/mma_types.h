// The element types of matrix instructions, how they lie in registers, and their values.
#pragma once

#include <string>

#include "fp8.h"

namespace ptxsim {

enum Input : u8 { kF16, kBf16, kTf32, kF32, kF64, kS8, kU8, kS32, kE4m3, kE5m2 };

bool parse_input(const std::string& type, Input& out);

inline int element_bytes(Input type) {
    switch (type) {
        case kF16:
        case kBf16: return 2;
        case kTf32:
        case kF32:
        case kS32: return 4;
        case kF64: return 8;
        default: return 1;
    }
}

// Elements of one register; a double has a 64-bit register of its own.
inline int per_register(Input type) { return type == kF64 ? 1 : 4 / element_bytes(type); }

template <class T>
T element(u32 bits, int within, Input type) {
    switch (type) {
        case kF16: return static_cast<T>(to_float(Half{static_cast<u16>(bits >> (16 * within))}));
        case kBf16: return static_cast<T>(to_float(Bfloat{static_cast<u16>(bits >> (16 * within))}));
        case kTf32: return static_cast<T>(bit_cast<float>(bits & 0xffffe000u));  // "the lower 13 bits are ignored"
        case kF32: return static_cast<T>(bit_cast<float>(bits));
        case kS32: return static_cast<T>(static_cast<s32>(bits));
        case kS8: return static_cast<T>(static_cast<s8>(bits >> (8 * within)));
        case kU8: return static_cast<T>(static_cast<u8>(bits >> (8 * within)));
        case kE4m3: return static_cast<T>(to_float(E4m3{static_cast<u8>(bits >> (8 * within))}));
        default: return static_cast<T>(to_float(E5m2{static_cast<u8>(bits >> (8 * within))}));
    }
}

}  // namespace ptxsim
