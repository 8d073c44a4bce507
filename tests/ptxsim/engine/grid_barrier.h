// The barrier of a cooperative launch: what cooperative_groups::this_grid().sync() does with the grid's workspace.
//
// A kernel finds the workspace in %envreg1 and %envreg2, and its barrier is the second word: every CTA adds 1 to it,
// one of them so much that the last arrival flips the top bit, and each polls until it sees that (cooperative_groups.h,
// details/sync.h). Nothing else about it is known here than this word and this bit.
#pragma once

#include <atomic>

#include "memory_map.h"

namespace ptxsim {

struct Cta;

class GridBarrier {
  public:
    GridBarrier();
    ~GridBarrier();
    GridBarrier(const GridBarrier&) = delete;
    GridBarrier& operator=(const GridBarrier&) = delete;

    u64 workspace() const { return memory_->base; }
    u64 word() const { return memory_->base + 4; }

    std::atomic<u32> phase{0};  // barriers completed
    std::atomic<u32> epoch{0};  // of the race shadow since the last one
    std::atomic<u32> ended{0};  // CTAs that have ended

  private:
    AllocationPtr memory_;
};

bool is_grid_barrier(const Cta& cta, u64 address);
// An atomic is about to change the word from `old` to `next`: whoever sees `next` has to find the phase complete.
void arrive_at_grid_barrier(Cta& cta, u64 address, u64 old, u64 next);
// A strong read of the word: passes the barrier if it is complete.
void poll_grid_barrier(Cta& cta);
void leave_grid(const Cta& cta);

}  // namespace ptxsim
