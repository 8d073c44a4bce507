#include "warp_sync.h"

#include "cta.h"
#include "lanes.h"

namespace ptxsim {

namespace {

bool same_everywhere(const Warp& w, const u32* values, u32 value) {
    u32 other = 0;
    for (int i = 0; i < kLanes; ++i) other |= (values[i] ^ value) & (0u - ((w.active >> i) & 1u));
    return other == 0;
}

// Some lanes of a group are elsewhere: each group goes on as a fragment, and waits for its own lanes.
void part_groups(Warp& w, const MaskGroups& groups) {
    u32 pc = w.current_pc(), rest = w.fragment().mask & ~w.active;
    std::vector<std::pair<u32, u32>> paths;
    for (int g = 0; g < groups.count; ++g) paths.push_back({pc, groups.lanes[g]});
    if (rest) paths.push_back({w.next, rest});
    w.diverge(paths, w.next);
}

}  // namespace

bool gather_mask_groups(Warp& w, Ref ref, MaskGroups& groups) {
    w.require_defined(w.defined(ref), "the membermask");
    const u32* masks = w.cells<u32>(ref);
    u32 first = masks[__builtin_ctz(w.active)], active = w.active;
    if (same_everywhere(w, masks, first)) {
        groups.lanes[0] = active;
        groups.count = 1;
        return w.converge(first);
    }
    bool complete = true;
    for (u32 left = active; left;) {
        u32 mask = masks[__builtin_ctz(left)], same = 0;
        for_lanes(left, [&](int i) { same |= masks[i] == mask ? 1u << i : 0; });
        groups.lanes[groups.count++] = w.active = same;
        w.check_members(mask);
        complete &= same == (mask & w.alive);
        left &= ~same;
    }
    w.active = active;
    if (complete || !w.cta->checks(kCheckDivergence)) return true;
    part_groups(w, groups);
    return false;
}

}  // namespace ptxsim
