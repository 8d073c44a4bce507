// Thread block clusters (PTX ISA 2.2.2): CTAs that run together, read and write each other's shared memory, and share a
// barrier. One worker runs all CTAs of a cluster, in turns the seed chooses.
//
// An address of the window .shared::cluster tells the CTA in its bits from kClusterShift on: 0 is the CTA itself, r + 1
// the one of rank r.
#pragma once

#include <memory>
#include <vector>

#include "access.h"

namespace ptxsim {

constexpr u32 kClusterShift = 24;
constexpr u32 kPortableCluster = 8, kLargestCluster = 16;
constexpr int kClusterBarrier = kBarriers;  // Fragment::barrier of who waits at the cluster's barrier

class Cluster {
  public:
    void start(const Launch& launch, u64 index, Profile* profile, Counters* counters);
    // Runs about `budget` warp instructions; true when all CTAs have finished.
    bool run(u64 budget);
    u64 issued() const;
    bool waits() const;
    u32 size() const { return static_cast<u32>(ctas_.size()); }
    Cta& cta(u32 rank) { return *ctas_[rank]; }

    // barrier.cluster: a thread arrives, and waits for the phase it arrived in.
    void arrive(Warp& w, u32 lanes, bool release);
    bool passed(const Warp& w, u32 lanes) const;
    void leave(Warp& w, u32 lanes, bool acquire);
    // Threads that have exited are not awaited.
    void complete_if_full();

  private:
    struct Arrivals {
        u32 lanes = 0;  // have arrived and not yet passed
        u64 phase[kLanes] = {};
    };
    Arrivals& arrivals(const Warp& w) { return arrivals_[w.cta->rank * w.cta->warp_count + static_cast<u32>(w.id)]; }
    const Arrivals& arrivals(const Warp& w) const { return const_cast<Cluster*>(this)->arrivals(w); }
    std::vector<std::unique_ptr<Cta>> ctas_;
    std::vector<Arrivals> arrivals_;
    std::vector<Clock> gathered_, completed_;  // by rank, as the arriving warps counted
    u64 phase_ = 0;
    Random random_;
};

// Bytes of shared memory of some CTA of the cluster.
struct SharedPlace {
    Cta* cta;
    u32 offset;
};
// Where an address of .shared::cluster points; an error if it names no CTA of the cluster, or one that has ended.
SharedPlace shared_place(Warp& w, int lane, u64 address, u32 bytes);
inline bool is_remote(u64 address) { return (address >> kClusterShift) != 0; }

// For an access that may leave the CTA: by a generic address or one of .shared::cluster.
inline SharedPlace reach_shared(Warp& w, const Op& op, int lane, u64 address, u32 bytes) {
    bool may_leave = op.space == Space::None || (op.addressing & kClusterWindow);
    if (__builtin_expect(is_remote(address) && may_leave, 0)) return shared_place(w, lane, address, bytes);
    shared_pointer(w, lane, address, bytes);
    return {w.cta, static_cast<u32>(address)};
}
// What a lane's load or store in another CTA's shared memory means there; of a load, which elements are defined.
void load_remote(Warp& w, const Op& op, int lane, SharedPlace place, u32 bytes, u32* defined);
void store_remote(Warp& w, const Op& op, int lane, SharedPlace place, u32 bytes, bool defined, Scope scope);
// Release and acquire of a word in shared memory, its own CTA's or another's (race_release.h).
void release_place(Warp& w, SharedPlace place, Scope scope);
void acquire_place(Warp& w, int lane, SharedPlace place);

// Clocks of other CTAs' warps stand behind a CTA's own, and behind the phases of its mbarriers.
u32 remote_clock(const Cta& cta, u32 rank, u32 warp);
// A clock of one CTA as another one of the cluster counts.
Clock seen_from(const Cta& to, const Cta& from, const Clock& clock);
// What a warp knows of other CTAs of its cluster holds for global memory too.
void share_cluster_knowledge(Warp& w);
// Did what that warp of CTA `other` did at `clock` happen before what `w` does next?
bool knows_remote(const Warp& w, const Cta& other, u32 warp, u32 clock);

}  // namespace ptxsim
