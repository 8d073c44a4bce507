#include "cluster.h"

#include <algorithm>

#include "lanes.h"

namespace ptxsim {

namespace {
constexpr u32 kTurn = 4096;  // warp instructions a CTA runs at most before another one of its cluster gets its turn
}

void Cluster::start(const Launch& launch, u64 index, Profile* profile, Counters* counters) {
    const u32 *grid = launch.grid, *shape = launch.cluster;
    u32 size = shape[0] * shape[1] * shape[2], across = grid[0] / shape[0], along = grid[1] / shape[1];
    u32 first[3] = {static_cast<u32>(index % across) * shape[0], static_cast<u32>(index / across % along) * shape[1],
                    static_cast<u32>(index / across / along) * shape[2]};
    random_.state = mix(launch.seed ^ (index * 0x2545f4914f6cdd1dull) ^ 0xc105);
    ctas_.resize(size);
    phase_ = 0;
    gathered_.assign(size, {});
    completed_.assign(size, {});
    for (auto& cta : ctas_)
        if (!cta) cta = std::make_unique<Cta>();
    for (u32 rank = 0; rank < size; ++rank) {
        Cta& cta = *ctas_[rank];
        u32 x = first[0] + rank % shape[0], y = first[1] + rank / shape[0] % shape[1],
            z = first[2] + rank / shape[0] / shape[1];
        cta.profile = profile;
        cta.counters = counters;
        cta.cluster = this;
        cta.rank = rank;
        cta.start(launch, x + grid[0] * (y + grid[1] * z));
    }
    arrivals_.assign(static_cast<size_t>(size) * ctas_[0]->warp_count, {});
}

u64 Cluster::issued() const {
    u64 sum = 0;
    for (const auto& cta : ctas_) sum += cta->issued;
    return sum;
}

bool Cluster::waits() const {
    return std::all_of(ctas_.begin(), ctas_.end(), [](const auto& c) { return c->finished() || c->waits(); });
}

bool Cluster::run(u64 budget) {
    if (size() == 1) return ctas_[0]->run(budget);
    for (u64 begin = issued(), before = begin; before - begin < budget;) {
        u32 first = random_.below(size());
        u64 events = 0;
        bool finished = true;
        for (u32 i = 0; i < size(); ++i) {
            Cta& cta = *ctas_[(first + i) % size()];
            if (cta.finished()) continue;
            cta.run(1 + random_.below(kTurn));
            finished &= cta.finished();
            events += cta.stuck ? 0 : 1;
        }
        if (finished) return true;
        u64 now = issued();
        if (now == before && !events) {
            for (const auto& cta : ctas_)
                if (!cta->finished()) cta->report_deadlock();
        }
        before = now;
        if (waits()) return false;
    }
    return false;
}

// ---- barrier.cluster ----

void Cluster::arrive(Warp& w, u32 lanes, bool release) {
    Arrivals& a = arrivals(w);
    if (a.lanes & lanes)
        w.fail(ErrorKind::Divergence, "barrier.cluster.arrive, and this thread has not waited since it last arrived.",
               __builtin_ctz(a.lanes & lanes));
    a.lanes |= lanes;
    for_lanes(lanes, [&](int i) { a.phase[i] = phase_; });
    if (release) {
        merge_clock(gathered_[w.cta->rank], w.clocks.known());
        w.clocks.advance();
    } else {  // fence.mbarrier_init.release.cluster: a relaxed arrival is enough to hand initialised mbarriers over
        Clock fenced(static_cast<size_t>(w.id) + 1, 0);
        fenced.back() = w.cta->proxy.last_fence(w);
        merge_clock(gathered_[w.cta->rank], fenced);
    }
    complete_if_full();
}

void Cluster::complete_if_full() {
    bool any = false;
    for (const auto& cta : ctas_) {
        for (const Warp& warp : cta->warps) {
            const Arrivals& a = arrivals(warp);
            u32 here = 0;
            for_lanes(a.lanes & warp.alive, [&](int i) { here |= a.phase[i] == phase_ ? 1u << i : 0; });
            if (warp.alive & ~here) return;
            for_lanes(a.lanes, [&](int i) { any |= a.phase[i] == phase_; });
        }
    }
    if (!any) return;
    ++phase_;
    completed_.swap(gathered_);
    for (Clock& clock : gathered_) clock.clear();
    for (const auto& cta : ctas_) {
        ++cta->events;
        for (Warp& warp : cta->warps)
            for (Fragment& f : warp.fragments)
                if (f.state == FragmentState::AtBarrier && f.barrier == kClusterBarrier)
                    f.state = FragmentState::Runnable;
    }
}

bool Cluster::passed(const Warp& w, u32 lanes) const {
    const Arrivals& a = arrivals(w);
    if (lanes & ~a.lanes)
        w.fail(ErrorKind::Divergence, "barrier.cluster.wait, and this thread has not arrived.",
               __builtin_ctz(lanes & ~a.lanes));
    bool done = true;
    for_lanes(lanes, [&](int i) { done &= a.phase[i] < phase_; });
    return done;
}

void Cluster::leave(Warp& w, u32 lanes, bool acquire) {
    arrivals(w).lanes &= ~lanes;
    if (!acquire) return;
    for (u32 rank = 0; rank < size(); ++rank) {
        const Clock& clock = completed_[rank];
        if (clock.empty()) continue;
        w.clocks.join(rank == w.cta->rank ? clock : seen_from(*w.cta, cta(rank), clock), lanes);
    }
    share_cluster_knowledge(w);
}

// ---- clocks ----

u32 remote_clock(const Cta& cta, u32 rank, u32 warp) {
    u32 size = cta.cluster->size(), slot = (rank + size - cta.rank) % size;
    return slot == 0 ? warp : cta.warp_count + epoch::kMostOwners + 1 + (slot - 1) * cta.warp_count + warp;
}

Clock seen_from(const Cta& to, const Cta& from, const Clock& clock) {
    u32 size = from.cluster->size();
    Clock out;
    for (u32 rank = 0; rank < size; ++rank) {
        for (u32 warp = 0; warp < from.warp_count; ++warp) {
            u32 at = remote_clock(from, rank, warp), here = remote_clock(to, rank, warp);
            if (at >= clock.size() || clock[at] == 0) continue;
            if (here >= out.size()) out.resize(here + 1, 0);
            out[here] = clock[at];
        }
    }
    return out;
}

bool knows_remote(const Warp& w, const Cta& other, u32 warp, u32 clock) {
    if (&other == w.cta) return clock <= w.clocks.limit(warp) || warp == static_cast<u32>(w.id);
    return clock <= w.clocks.phases_known(remote_clock(*w.cta, other.rank, warp));
}

void share_cluster_knowledge(Warp& w) {
    Cluster* cluster = w.cta->cluster;
    for (u32 rank = 0; rank < cluster->size(); ++rank) {
        if (rank == w.cta->rank) continue;
        Clock clock(w.cta->warp_count, 0);
        for (u32 warp = 0; warp < w.cta->warp_count; ++warp)
            clock[warp] = w.clocks.phases_known(remote_clock(*w.cta, rank, warp));
        if (*std::max_element(clock.begin(), clock.end()) == 0) continue;
        merge_clock(w.cta->releases.others[cluster->cta(rank).index], clock);
    }
}

}  // namespace ptxsim
