// Vector clocks: which earlier accesses happened before what a lane does next.
//
// A warp counts its synchronisations. While all of its lanes synchronise together they share one clock, and one limit
// for each warp of the CTA: accesses up to it are ordered before whatever any lane does next. A .sync of some lanes
// only orders those lanes with each other, so it gives each lane a clock of its own, until all lanes synchronise again.
//
// What other warps did is known to a warp as a whole: what one lane learns at an mbarrier or from an atomic, all know.
#pragma once

#include <memory>
#include <vector>

#include "base.h"

namespace ptxsim {

// By warp: the last of its clocks that is known.
using Clock = std::vector<u32>;
void merge_clock(Clock& into, const Clock& from);

constexpr u32 kLastClock = (1u << 19) - 1;  // as many bits as the shadows have room for

class WarpClocks {
  public:
    // `lanes` are those that the warp starts with. Without `lanes_race` a warp counts as one thread.
    void start(u32 warps, u32 own, u32 lanes, bool lanes_race);

    u32 now(int lane) const { return split_ ? apart_->now[lane] : known_[own_]; }
    // Accesses of that warp up to this clock happened before what any lane does next.
    u32 limit(u32 warp) const { return limit_[warp]; }
    const u32* limits() const { return limit_; }
    // For an access of this warp above its limit: is it ordered before what `lane` does next? Lane -1 stands for all.
    bool knows(int lane, u32 other, u32 clock) const {
        return lane == static_cast<int>(other) || (split_ && apart_knows(lane, other, clock));
    }
    bool split() const { return split_; }

    // What is published at a barrier or by a release.
    const Clock& known() const { return known_; }
    // What `lanes` did is ordered before what these lanes do next.
    void sync(u32 lanes) {
        if (lanes != all_) return sync_part(lanes);
        synced_ = known_[own_];
        split_ = false;
        advance();
    }
    // What was published so far does not cover what the warp does next.
    void advance();
    // These lanes learn what another clock knows.
    void join(const Clock& other, u32 lanes);
    u32 all_lanes() const { return all_; }
    // Behind the warps' clocks follow the phases of mbarriers that are known to have completed.
    u32 phases_known(u32 entry) const { return entry < known_.size() ? known_[entry] : 0; }

  private:
    struct Apart { u32 now[kLanes], known[kLanes][kLanes]; };

    bool apart_knows(int lane, u32 other, u32 clock) const;
    void sync_part(u32 lanes);
    Apart& take_apart();
    u32 tick();
    void join_lanes(u32 published, u32 lanes);

    Clock known_;  // its own entry is the present
    u32 limit_[kLanes] = {};
    u32 own_ = 0, all_ = 0;
    u32 synced_ = 0;  // own clock at the last sync of all lanes
    bool lanes_race_ = true, split_ = false;
    std::unique_ptr<Apart> apart_;  // valid while split
};

}  // namespace ptxsim
