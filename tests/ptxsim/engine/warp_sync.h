// Instructions that gather the lanes of a membermask (shfl, vote, match, redux, elect, bar.warp.sync).
#pragma once

#include "warp.h"

namespace ptxsim {

// Active lanes that give the same membermask.
struct MaskGroups {
    u32 lanes[kLanes];
    int count = 0;
};

// False if the fragment has to wait for lanes, or was split by membermask.
bool gather_mask_groups(Warp& w, Ref mask, MaskGroups& groups);

// "will cause executing thread to wait until all non-exited threads corresponding to membermask have executed [it] with
// the same qualifiers and same membermask value before resuming execution" (PTX ISA 9.7.9.6, 9.7.13): lanes that give
// different masks do not meet. Runs `body` with each group in turn as the active lanes.
template <class F>
inline void for_mask_groups(Warp& w, Ref mask, F body) {
    MaskGroups groups;
    if (!gather_mask_groups(w, mask, groups)) return;
    u32 active = w.active;
    for (int g = 0; g < groups.count; ++g) {
        w.active = groups.lanes[g];
        body();
    }
    w.active = active;
}

// What the active lanes did is ordered before what they do next.
inline void order_active_lanes(Warp& w) { w.clocks.sync(w.active); }

}  // namespace ptxsim
