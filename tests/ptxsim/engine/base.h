// Integer names, bit casts and the constants every room of the engine shares.
#pragma once

#include <cstdint>
#include <cstring>

namespace ptxsim {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;

constexpr int kLanes = 32;
constexpr u32 kFull = 0xffffffffu;

// Generic addresses (PTX ISA 5.1): global memory is host memory, so the other windows lie where no host mapping can.
constexpr u64 kSharedWindow = 0x0100'0000'0000'0000ull;
constexpr u64 kLocalWindow = 0x0200'0000'0000'0000ull;
constexpr u64 kParamWindow = 0x0300'0000'0000'0000ull;
constexpr u64 kFunctionWindow = 0x0400'0000'0000'0000ull;
constexpr u64 kWindowMask = 0xff00'0000'0000'0000ull;

// The driver keeps the first KiB of a CTA's shared memory for itself, so no variable has address 0.
constexpr u32 kSharedBase = 1024;

template <class To, class From>
inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline bool lane_in(u32 mask, int lane) { return (mask >> lane) & 1u; }
inline int popcount(u32 mask) { return __builtin_popcount(mask); }

// splitmix64: the one source of every seeded choice.
inline u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

struct Random {
    u64 state = 0;
    u64 next() { return mix(state++); }
    u32 below(u32 n) { return n <= 1 ? 0 : static_cast<u32>((next() >> 32) % n); }
};

}  // namespace ptxsim
