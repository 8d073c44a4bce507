// mbarrier objects (PTX ISA 9.7.13.15): counts, transactions, phases. The 8 bytes in shared memory are opaque.
#pragma once

#include <string>

#include "race_clock.h"

namespace ptxsim {

struct Cta;
struct Warp;

struct MemoryBarrier {
    u32 offset = 0, number = 0;  // number: in the order of initialisation (AsyncProxy::number_barrier)
    u32 expected = 0, pending = 0;
    s64 transactions = 0;
    u64 phase = 0;         // phases completed
    u32 copies = 0;        // bulk copies issued for this phase that have not landed
    bool observed = true;  // a wait has found the last completed phase complete
    u32 init_warp = 0, init_lane = 0, init_clock = 0;
    Clock gathered, completed;  // clocks of the current and of the last finished phase
    std::string describe() const;
};

constexpr u32 kMostArrivals = (1u << 20) - 1;

// The mbarrier at `offset` of that CTA's shared memory; an error at `lane` if there is none.
MemoryBarrier& find_barrier(Warp& w, Cta& cta, u32 offset, int lane);
// "expect-tx": tx-count increases; "complete-tx": it decreases, and the phase completes if nothing is pending.
void expect_transactions(Cta& cta, MemoryBarrier& b, s64 bytes);
void complete_transactions(Cta& cta, MemoryBarrier& b, s64 bytes);
void init_barrier(Warp& w, int lane, u32 offset, u32 count);
void invalidate_barrier(Warp& w, int lane, MemoryBarrier& b);
// A wait by parity can tell two neighbouring phases apart, not more.
void check_parity(Warp& w, int lane, const MemoryBarrier& b, u32 parity);
// An arrival by a thread whose warp knows `clock`.
void arrive_at_barrier(Cta& cta, MemoryBarrier& b, u32 count, const Clock& clock);

}  // namespace ptxsim
