#include "grid_barrier.h"

#include "cta.h"
#include "race_global.h"

namespace ptxsim {

namespace {
constexpr u64 kWorkspaceBytes = 256;
}

GridBarrier::GridBarrier()
    : memory_(MemoryMap::instance().create(kWorkspaceBytes, "the grid's workspace", false, false)) {}
GridBarrier::~GridBarrier() { MemoryMap::instance().remove(memory_->base); }

bool is_grid_barrier(const Cta& cta, u64 address) {
    const GridBarrier* barrier = cta.launch->grid_barrier;
    return barrier && address == barrier->word();
}

// All CTAs have arrived: what any of them did happened before what any does after the barrier. A new epoch says so,
// because entries of an earlier one count as none.
void arrive_at_grid_barrier(Cta& cta, u64 address, u64 old, u64 next) {
    if (!is_grid_barrier(cta, address)) return;
    cta.at_grid_barrier = true;
    if (!((old ^ next) & 0x8000'0000u)) return;
    GridBarrier& barrier = *cta.launch->grid_barrier;
    barrier.epoch = next_shadow_epoch();
    ++barrier.phase;
}

void poll_grid_barrier(Cta& cta) {
    if (!cta.at_grid_barrier) return;  // a read just before the last arrival may have passed it
    GridBarrier& barrier = *cta.launch->grid_barrier;
    u32 ended = barrier.ended, phase = barrier.phase;
    cta.polls = kPolls;  // gives its turn away, in case it waits
    if (phase != cta.grid_phase) {
        cta.at_grid_barrier = false;
        cta.grid_phase = phase;
        cta.epoch = barrier.epoch;
        cta.releases.others.clear();
    } else if (ended && cta.checks(kCheckDeadlock)) {
        throw SimError(ErrorKind::Deadlock, "The grid's barrier waits for " + std::to_string(ended) +
                                                " CTAs that have ended without coming to it.");
    }
}

void leave_grid(const Cta& cta) {
    if (cta.launch->grid_barrier) ++cta.launch->grid_barrier->ended;
}

}  // namespace ptxsim
