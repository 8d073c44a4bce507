// How lanes part and meet again. A divergent branch opens a join at its immediate post-dominator; fragments that reach
// it wait for their siblings. Warp-level .sync instructions gather fragments that stand at the same instruction.
#include "cta.h"
#include "warp.h"

namespace ptxsim {

void Warp::block(FragmentState state) {
    fragment().state = state;
    fragment().pc = next;
    stop = true;
}

// paths: (pc, lanes), disjoint, covering the fragment.
void Warp::diverge(const std::vector<std::pair<u32, u32>>& paths, u32 reconverge) {
    stop = true;
    if (paths.size() == 1) {
        fragment().pc = paths[0].first;
        return;
    }
    Fragment base = fragment();
    bool reuse = base.join >= 0 && joins[base.join].pc == reconverge && joins[base.join].depth == base.frames.size();
    if (reconverge != kNoPc && !reuse) {
        Join join;
        join.pc = reconverge;
        join.expected = base.mask;
        join.parent = base.join;
        join.depth = static_cast<u32>(base.frames.size());
        base.join = static_cast<int>(joins.size());
        joins.push_back(join);
    }
    fragments.erase(fragments.begin() + current);
    for (const auto& [pc, lanes] : paths) {
        base.pc = pc;
        base.mask = lanes;
        fragments.push_back(base);
    }
    current = static_cast<int>(fragments.size()) - 1;
}

void Warp::arrive_at_join() {
    int index = fragment().join;
    Join& join = joins[index];
    stop = true;
    u32 strangers = fragment().mask & ~join.expected;  // merged in by a warp-level .sync; this join is not theirs
    if (strangers) {
        Fragment rest = fragment();
        rest.mask = strangers;
        rest.join = join.parent;
        fragment().mask &= join.expected;
        fragments.push_back(rest);
    }
    join.arrived |= fragment().mask;
    fragment().state = FragmentState::Parked;
    close_join(index);
}

// When every expected lane has arrived, the parked fragments become one.
void Warp::close_join(int index) {
    const Join join = joins[index];
    if (join.arrived != join.expected || join.expected == 0) return;
    Fragment merged;
    merged.mask = 0;
    for (size_t i = 0; i < fragments.size();) {
        Fragment& f = fragments[i];
        if (f.state != FragmentState::Parked || f.join != index) {
            ++i;
            continue;
        }
        u32 mask = merged.mask | f.mask;
        merged = f;
        merged.mask = mask;
        fragments.erase(fragments.begin() + i);
    }
    merged.state = FragmentState::Runnable;
    merged.join = join.parent;
    joins[index].expected = joins[index].arrived = 0;
    while (!joins.empty() && joins.back().expected == 0) joins.pop_back();
    fragments.push_back(merged);
    current = static_cast<int>(fragments.size()) - 1;
}

// Lanes that exit are awaited nowhere any more.
void Warp::exit_lanes(u32 lanes) {
    alive &= ~lanes;
    Fragment& f = fragment();
    f.mask &= ~lanes;
    f.pc = next;
    stop = true;
    if (f.mask == 0) fragments.erase(fragments.begin() + current);
    current = 0;
    for (int i = static_cast<int>(joins.size()) - 1; i >= 0; --i) {
        if (i >= static_cast<int>(joins.size()) || joins[i].expected == 0) continue;
        joins[i].expected &= ~lanes;
        joins[i].arrived &= ~lanes;
        if (joins[i].expected) close_join(i);
    }
    current = 0;
    cta->on_lanes_exit();
}

void Warp::check_members(u32 wanted) const {
    u32 strangers = active & ~wanted;
    if (!strangers || !cta->checks(kCheckDivergence)) return;
    int lane = __builtin_ctz(strangers);
    fail(
        ErrorKind::Divergence,
        "Lane " + std::to_string(lane) + " executes this instruction but is not in its membermask " + hex(wanted) + ".",
        lane);
}

bool Warp::converge(u32 wanted) {
    wanted &= alive;
    check_members(wanted);
    if (active == wanted || !cta->checks(kCheckDivergence)) return true;
    if (active != fragment().mask) {  // lanes of this very fragment were predicated off: they can never come
        fail_partial(wanted);
    }
    fragment().sync_mask = wanted;
    next = fragment().pc;
    block(FragmentState::AtWarpSync);
    return false;
}

void Warp::fail_partial(u32 wanted) const {
    u32 missing = wanted & ~active & alive;
    fail(ErrorKind::Divergence, "Only part of the warp executes this .sync instruction: lanes " + hex(active) +
                                    " are here, it needs " + hex(wanted) + ", lane " +
                                    std::to_string(missing ? __builtin_ctz(missing) : 0) + " is elsewhere.");
}

namespace {
bool is_ancestor(const std::vector<Join>& joins, int ancestor, int join) {
    for (; join >= 0; join = joins[join].parent)
        if (join == ancestor) return true;
    return ancestor < 0;
}
}  // namespace

// No fragment can run. Fragments that wait at the same warp-level instruction for the same lanes, and together hold
// them, go on as one.
void Warp::resolve_waiting_fragments() {
    for (size_t i = 0; i < fragments.size(); ++i) {
        if (fragments[i].state != FragmentState::AtWarpSync) continue;
        u32 mask = fragments[i].mask, wanted = fragments[i].sync_mask & alive;
        int join = fragments[i].join;
        for (size_t j = 0; j < fragments.size(); ++j) {
            const Fragment& g = fragments[j];
            if (j == i || g.state != FragmentState::AtWarpSync || g.pc != fragments[i].pc ||
                (g.sync_mask & alive) != wanted || g.frames.size() != fragments[i].frames.size())
                continue;
            if (!is_ancestor(joins, g.join, join) && !is_ancestor(joins, join, g.join)) continue;
            mask |= g.mask;
            if (is_ancestor(joins, join, g.join)) join = g.join;
        }
        if ((mask & wanted) != wanted) continue;
        Fragment merged = fragments[i];
        merged.mask = mask;
        merged.join = join;
        merged.state = FragmentState::Runnable;
        u32 pc = merged.pc;
        for (size_t j = fragments.size(); j-- > 0;)
            if (fragments[j].state == FragmentState::AtWarpSync && fragments[j].pc == pc &&
                (fragments[j].mask & ~mask) == 0)
                fragments.erase(fragments.begin() + j);
        fragments.push_back(merged);
        return;
    }
    for (size_t i = 0; i < fragments.size(); ++i) {
        FragmentState state = fragments[i].state;
        if (state != FragmentState::AtWarpSync && state != FragmentState::Parked) return;
    }
    for (size_t i = 0; i < fragments.size(); ++i) {
        if (fragments[i].state != FragmentState::AtWarpSync) continue;
        current = static_cast<int>(i);
        active = fragments[i].mask;
        fail_partial(fragments[i].sync_mask & alive);
    }
}

bool Warp::wake_at_mbarriers(bool gave_up) {
    bool any = false;
    for (Fragment& f : fragments) {
        if (f.state != FragmentState::AtMbarrier) continue;
        auto found = cta->memory_barriers.find(f.mbarrier);
        bool waits = found != cta->memory_barriers.end() && found->second.phase == f.mbarrier_phase;
        if (waits && !gave_up) continue;
        f.state = FragmentState::Runnable;
        f.released = waits;
        any = true;
    }
    return any;
}

// Fragments that wait for registers of the pool, or for the other warps of their warpgroup.
void Warp::wake_at_warpgroup() {
    for (Fragment& f : fragments) {
        bool registers = f.state == FragmentState::AtRegisters && f.registers <= cta->register_pool.free;
        bool others = f.state == FragmentState::AtWarpgroup && cta->warpgroups[id / kWarpgroup].whole(*this);
        if (!registers && !others) continue;
        f.state = FragmentState::Runnable;
        f.released = true;
    }
}

std::string Warp::describe_wait() const {
    std::string text;
    for (const Fragment& f : fragments) {
        if (f.state == FragmentState::Runnable) continue;
        if (!text.empty()) text += "; ";
        text += "warp " + std::to_string(id) + (f.mask == kFull ? "" : " lanes " + hex(f.mask)) + " at " +
                program->text_at(f.pc);
        if (f.state == FragmentState::AtRegisters)
            text += " for " + std::to_string(f.registers) + " registers a thread, the pool has " +
                    std::to_string(cta->register_pool.free);
        if (f.state == FragmentState::AtMbarrier) text += " for mbarrier " + hex(f.mbarrier);
    }
    return text;
}

}  // namespace ptxsim
