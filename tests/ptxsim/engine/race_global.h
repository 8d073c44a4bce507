// Conflicting accesses of different threads to one global byte, within a launch.
//
// Each 4-byte word remembers the last writing CTA and the last reading one, or that many have read it; with each, the
// threads of that CTA (race_words.h). Accesses of one CTA are ordered by its warps' clocks, those of different CTAs by
// what they published to each other (race_release.h) and by the grid's barrier.
//
// Between CTAs strong accesses (atomics, volatile) are exempt, as each other's partners and as a plain access's. Within
// a CTA a plain write conflicts with strong accesses too.
#pragma once

#include "memory_map.h"
#include "warp.h"

namespace ptxsim {

enum class GlobalAccess : u8 { Read, ReadNonCoherent, StrongRead, Write, Atomic };

// Throws Race if the access conflicts with another thread's. Counts the bytes seen for the first time in this launch.
// Lanes of one instruction may write one word if they write the same value: `data` is what is about to be stored.
void check_global_race(Warp& w, int lane, Allocation& allocation, u64 address, u32 bytes, GlobalAccess access,
                       const u8* data = nullptr);

// Entries of an earlier epoch count as none: a launch has one, and a new one after each grid barrier.
u32 next_shadow_epoch();

}  // namespace ptxsim
