// Conflicting plain accesses of different CTAs to one global byte, within a launch.
//
// Each 4-byte word has an entry: launch epoch, last writing CTA with the bytes it wrote, last reading CTA (or "many")
// with its bytes. Atomics and strong accesses are exempt; a CTA that observed another's release by an atomic is ordered
// after it.
#pragma once

#include "memory_map.h"
#include "warp.h"

namespace ptxsim {

enum class GlobalAccess : u8 { Read, ReadNonCoherent, Write, Atomic };

// Throws Race if the access conflicts with another CTA's. Counts the bytes seen for the first time in this launch.
void check_global_race(Warp& w, int lane, Allocation& allocation, u64 address, u32 bytes, GlobalAccess access);

// Release and acquire through a word (an atomic, a volatile or a strong access; 8.7, memory consistency).
// A release orders everything the CTA did before; any other strong write only what a fence preceded.
void release_global(Warp& w, u64 address, bool releases);
void acquire_global(Warp& w, u64 address);

// Sync words of a launch are forgotten when it ends.
void forget_releases(u64 launch);

}  // namespace ptxsim
