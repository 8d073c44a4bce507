#include "mbarrier.h"

#include <algorithm>

#include "cta.h"

namespace ptxsim {

namespace {

constexpr s64 kMostBytes = (1 << 20) - 1;  // "valid range of tx-count": -(2^20 - 1) to 2^20 - 1

// What breaks a rule of mbarrier objects is undefined: reported under the check `mbarrier`.
[[noreturn]] void fail_rule(const MemoryBarrier& b, ErrorKind kind, const std::string& rule) {
    SimError error(kind, rule + " (" + b.describe() + ").");
    throw error.at_address(b.offset);
}

// A phase completes when nobody is pending and no bytes are outstanding.
void complete_phase(Cta& cta, MemoryBarrier& b) {
    if (b.pending != 0 || b.transactions != 0) return;
    if (b.copies && cta.checks(kCheckMbarrier))
        fail_rule(b, ErrorKind::Race,
                  "The phase of an mbarrier completes while " + std::to_string(b.copies) +
                      " bulk copies issued for it have not landed: it expects too few bytes");
    ++b.phase;
    if (b.phase >= epoch::kOwnerPhases)
        throw SimError(ErrorKind::Unsupported, "An mbarrier goes through more than 1048575 phases.");
    b.pending = b.expected;
    size_t entry = cta.warp_count + b.number;
    if (b.gathered.size() <= entry) b.gathered.resize(entry + 1, 0);
    b.gathered[entry] = static_cast<u32>(b.phase);
    b.completed.swap(b.gathered);
    b.gathered.clear();
    b.observed = false;
    cta.proxy.complete_phase(b.number, b.phase);
    ++cta.events;
}

void add_transactions(Cta& cta, MemoryBarrier& b, s64 bytes) {
    b.transactions += bytes;
    if (std::abs(b.transactions) > kMostBytes && cta.checks(kCheckMbarrier))
        fail_rule(b, ErrorKind::Undefined, "The transaction count of an mbarrier leaves its range of 2^20 - 1 bytes");
    ++cta.events;
}

}  // namespace

std::string MemoryBarrier::describe() const {
    return "mbarrier " + hex(offset) + ": phase " + std::to_string(phase) + ", " + std::to_string(pending) + " of " +
           std::to_string(expected) + " arrivals pending, " + std::to_string(transactions) + " bytes to come";
}

void init_barrier(Warp& w, int lane, u32 offset, u32 count) {
    Cta& cta = *w.cta;
    bool strict = cta.checks(kCheckMbarrier);
    auto found = cta.memory_barriers.find(offset);
    if (found != cta.memory_barriers.end() && strict)
        w.fail(ErrorKind::Undefined,
               "mbarrier.init of a live object, without mbarrier.inval: " + found->second.describe() + ".", lane);
    if (count == 0 || count > kMostArrivals)
        w.fail(ErrorKind::Undefined, "The count " + std::to_string(count) + " of an mbarrier is not in 1..2^20 - 1.",
               lane);
    for (u32 at : {offset - 4, offset + 4})
        if (strict && offset % 8 == 0 && cta.memory_barriers.count(at))
            w.fail(ErrorKind::Undefined, "mbarrier.init of bytes that another mbarrier lies on.", lane);
    cta.shadow.write(w, lane, offset, 8, true, nullptr);
    MemoryBarrier b;
    b.offset = offset;
    b.number = cta.proxy.number_barrier(cta);
    b.expected = b.pending = count;
    b.init_warp = static_cast<u32>(w.id);
    b.init_lane = static_cast<u32>(lane);
    b.init_clock = w.clocks.now(lane);
    cta.memory_barriers[offset] = b;
    int shift = cta.shadow.granule_shift();
    for (u32 g = offset >> shift; g <= (offset + 7) >> shift; ++g)
        cta.shadow.set_owner(g, epoch::kObject, w.current_pc());
}

void invalidate_barrier(Warp& w, int lane, MemoryBarrier& b) {
    Cta& cta = *w.cta;
    u32 offset = b.offset;
    int shift = cta.shadow.granule_shift();
    for (u32 g = offset >> shift; g <= (offset + 7) >> shift; ++g)
        cta.shadow.set_owner(g, epoch::make(static_cast<u32>(w.id), static_cast<u32>(lane), w.clocks.now(lane), 0),
                             w.current_pc());
    cta.memory_barriers.erase(offset);
}

MemoryBarrier& find_barrier(Warp& w, Cta& cta, u32 offset, int lane) {
    auto found = cta.memory_barriers.find(offset);
    if (found == cta.memory_barriers.end())
        w.fail(ErrorKind::Undefined, "The mbarrier at " + hex(offset) + " was not initialised.", lane);
    MemoryBarrier& b = found->second;
    if (w.cta != &cta || !cta.checks(kCheckRace)) return b;
    bool ordered = b.init_clock <= w.clocks.limit(b.init_warp) ||
                   (b.init_warp == static_cast<u32>(w.id) && w.clocks.knows(lane, b.init_lane, b.init_clock));
    if (!ordered)
        w.fail(ErrorKind::Race,
               "Race on the mbarrier at " + hex(offset) + ": its mbarrier.init by warp " + std::to_string(b.init_warp) +
                   " lane " + std::to_string(b.init_lane) + " is not ordered before this.",
               lane);
    return b;
}

void expect_transactions(Cta& cta, MemoryBarrier& b, s64 bytes) { add_transactions(cta, b, bytes); }

void complete_transactions(Cta& cta, MemoryBarrier& b, s64 bytes) {
    add_transactions(cta, b, -bytes);
    complete_phase(cta, b);
}

void arrive_at_barrier(Cta& cta, MemoryBarrier& b, u32 count, const Clock& clock) {
    if (count == 0 && cta.checks(kCheckMbarrier))
        fail_rule(b, ErrorKind::Undefined, "An arrival at an mbarrier with count 0");
    if (count > b.pending) fail_rule(b, ErrorKind::Deadlock, "More arrivals at an mbarrier than its phase expects");
    if (b.pending > kMostArrivals && cta.checks(kCheckMbarrier))
        fail_rule(b, ErrorKind::Undefined, "The pending count of an mbarrier leaves its range");
    if (!b.observed && cta.checks(kCheckMbarrier))
        fail_rule(
            b, ErrorKind::Race,
            "An arrival at an mbarrier whose last completed phase no wait has found complete: at least one has to "
            "before the next phase begins");
    merge_clock(b.gathered, clock);
    b.pending -= count;
    ++cta.events;
    complete_phase(cta, b);
}

// A waiter knows of `known` completed phases. Two more have completed, and the parity is again that of the phase it
// waits for: it would wait for a third.
void check_parity(Warp& w, int lane, const MemoryBarrier& b, u32 parity) {
    if (!w.cta->checks(kCheckMbarrier)) return;
    u64 known = w.clocks.phases_known(w.cta->warp_count + b.number);
    if ((known & 1) != parity || b.phase < known + 2) return;
    w.fail(ErrorKind::Race,
           "A wait for phase " + std::to_string(known) + " of an mbarrier comes after phase " +
               std::to_string(b.phase - 1) + " has completed: by parity they are alike (" + b.describe() + ").",
           lane);
}

}  // namespace ptxsim
