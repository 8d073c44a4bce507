// What the race shadow remembers of one 4-byte word of global memory, packed into three words of 64 bits.
//
// The first tells CTAs apart and is changed by all of them. The others hold the threads of the CTA that it names last.
#pragma once

#include "base.h"

namespace ptxsim {

constexpr u32 kCtaBits = 22, kManyCtas = (1u << kCtaBits) - 1;

// The last writing and the last reading CTA, numbered from 1, with the bytes they touched.
struct CtaEntry {
    u32 epoch, writer, written, reader, read;

    static CtaEntry unpack(u64 bits) {
        return {static_cast<u32>(bits >> 52), static_cast<u32>(bits >> 30) & kManyCtas,
                static_cast<u32>(bits >> 26) & 15u, static_cast<u32>(bits >> 4) & kManyCtas,
                static_cast<u32>(bits) & 15u};
    }
    u64 pack() const {
        return static_cast<u64>(epoch) << 52 | static_cast<u64>(writer) << 30 | static_cast<u64>(written) << 26 |
               static_cast<u64>(reader) << 4 | read;
    }
};

// The last plain write. `mixed`: several lanes wrote different bytes at this clock, which of them is not known.
struct ThreadWrite {
    u32 pc, clock, warp, lane, bytes, mixed;

    static ThreadWrite unpack(u64 bits) {
        u32 low = static_cast<u32>(bits);
        return {static_cast<u32>(bits >> 34),
                (static_cast<u32>(bits >> 15)) & 0x7ffffu,
                low >> 10 & 31u,
                low >> 5 & 31u,
                low >> 1 & 15u,
                low & 1u};
    }
    u64 pack() const {
        return static_cast<u64>(pc) << 34 | static_cast<u64>(clock) << 15 | warp << 10 | lane << 5 | bytes << 1 | mixed;
    }
};

// The last reads: of one warp, which lanes at which clock; of several warps, which, and after how many barriers of the
// whole CTA (`clock`). `strong`: only volatile or .relaxed, .acquire loads.
struct ThreadRead {
    u32 several, strong, mixed, bytes, warp, clock, who;

    static ThreadRead unpack(u64 bits) {
        u32 high = static_cast<u32>(bits >> 32);
        return {high >> 30 & 1u,  high >> 29 & 1u, high >> 28 & 1u,       high >> 24 & 15u,
                high >> 19 & 31u, high & 0x7ffffu, static_cast<u32>(bits)};
    }
    u64 pack() const {
        u32 high = several << 30 | strong << 29 | mixed << 28 | bytes << 24 | warp << 19 | clock;
        return static_cast<u64>(high) << 32 | who;
    }
};

}  // namespace ptxsim
