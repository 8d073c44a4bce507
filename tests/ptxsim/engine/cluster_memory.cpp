// Shared memory of other CTAs of the cluster: addresses, loads and stores, release and acquire.
#include "cluster.h"
#include "cluster_shadow.h"

namespace ptxsim {

SharedPlace shared_place(Warp& w, int lane, u64 address, u32 bytes) {
    Cta* cta = w.cta;
    if (u64 named = address >> kClusterShift) {
        u32 size = cta->cluster->size();
        if (named > size) {
            SimError error(ErrorKind::OutOfBounds, "The shared address " + hex(address) +
                                                       " names no CTA of the cluster, "
                                                       "which has " +
                                                       std::to_string(size) + ".");
            throw error.at_lane(lane).at_address(address).in_tensor("shared memory");
        }
        cta = &cta->cluster->cta(static_cast<u32>(named) - 1);
        address &= (1u << kClusterShift) - 1;
    }
    shared_pointer(w, lane, address, bytes);
    if (cta != w.cta && cta->finished() && w.cta->checks(kCheckRace)) {
        SimError error(ErrorKind::Race, "The shared memory of CTA " + std::to_string(cta->rank) +
                                            " of the cluster is used after that CTA has ended.");
        throw error.at_lane(lane).at_address(address).in_tensor("shared memory");
    }
    return {cta, static_cast<u32>(address)};
}

void release_place(Warp& w, SharedPlace place, Scope scope) {
    if (place.cta == w.cta) return release_shared(w, place.offset, scope);
    Releases& mine = w.cta->releases;
    if (scope == Scope::None && mine.fenced_cta.empty()) return;
    merge_clock(place.cta->releases.shared_words[place.offset],
                seen_from(*place.cta, *w.cta, scope == Scope::None ? mine.fenced_cta : w.clocks.known()));
    if (scope != Scope::None) w.clocks.advance();
}

void acquire_place(Warp& w, int lane, SharedPlace place) {
    const auto& words = place.cta->releases.shared_words;
    auto found = words.find(place.offset);
    if (found == words.end()) return;
    w.clocks.join(place.cta == w.cta ? found->second : seen_from(*w.cta, *place.cta, found->second), 1u << lane);
    share_cluster_knowledge(w);
}

void load_remote(Warp& w, const Op& op, int lane, SharedPlace place, u32 bytes, u32* defined) {
    RemoteAccess kind = op.access.flags & kStrong ? RemoteAccess::Atomic : RemoteAccess::Read;
    if (place.cta->remote->access(w, lane, place.offset, bytes, kind)) return;
    for (int k = 0; k < op.count; ++k) defined[k] &= ~(1u << lane);
}

void store_remote(Warp& w, const Op& op, int lane, SharedPlace place, u32 bytes, bool defined, Scope scope) {
    RemoteAccess kind = op.access.flags & kStrong ? RemoteAccess::Atomic : RemoteAccess::Write;
    place.cta->remote->access(w, lane, place.offset, bytes, kind);
    place.cta->shadow.define(place.offset, bytes, defined);
    if (op.access.flags & kStrong) release_place(w, place, scope);
}

}  // namespace ptxsim
