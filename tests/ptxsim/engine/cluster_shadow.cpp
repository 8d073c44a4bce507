#include "cluster_shadow.h"

#include <algorithm>

#include "cluster.h"

namespace ptxsim {

namespace {

constexpr u32 kGranule = 4;

std::string name_of(u32 rank, u32 warp) {
    return "warp " + std::to_string(warp) + " of CTA " + std::to_string(rank) + " of the cluster";
}

// Is what a warp of any CTA of the cluster did at `clock` ordered before what `w` does next?
bool ordered(const Warp& w, const Cluster& cluster, u32 rank, u32 warp, u32 clock) {
    if (rank == w.cta->rank && warp == static_cast<u32>(w.id)) return true;
    return knows_remote(w, const_cast<Cluster&>(cluster).cta(rank), warp, clock);
}

}  // namespace

void ClusterShadow::reset(Cta& cta) {
    cta_ = &cta;
    writes_.clear();
    readers_.clear();
    last_.assign(static_cast<size_t>(cta.cluster->size()) * cta.warp_count, Mark{});
}

void ClusterShadow::report(const Warp& w, int lane, u32 granule, const std::string& other) const {
    u32 offset = granule * kGranule;
    SimError error(ErrorKind::Race, "Race on shared memory of CTA " + std::to_string(cta_->rank) +
                                        " of the cluster at offset " + hex(offset) + ": " +
                                        name_of(w.cta->rank, static_cast<u32>(w.id)) + " is not ordered after " +
                                        other + ".");
    throw error.at_lane(lane).at_address(offset);
}

void ClusterShadow::note(const Warp& w) {
    last_[w.cta->rank * w.cta->warp_count + static_cast<u32>(w.id)] = {
        static_cast<u8>(w.cta->rank), static_cast<u8>(w.id), false, w.clocks.known()[w.id], w.current_pc()};
}

ClusterShadow::Reader& ClusterShadow::reader(const Warp& w) {
    for (Reader& r : readers_)
        if (r.rank == w.cta->rank && r.warp == static_cast<u32>(w.id)) return r;
    readers_.push_back({w.cta->rank, static_cast<u32>(w.id), std::vector<u32>(cta_->shared.size() / kGranule + 1, 0)});
    return readers_.back();
}

// Against what other CTAs did here.
void ClusterShadow::check_marks(Warp& w, int lane, u32 granule, bool writes, bool atomic) const {
    if (!writes_.empty()) {
        const Mark& m = writes_[granule];
        if (m.clock && !(atomic && m.atomic) && !ordered(w, *cta_->cluster, m.rank, m.warp, m.clock))
            report(w, lane, granule, "the write by " + name_of(m.rank, m.warp) + " (" + w.program->text_at(m.pc) + ")");
    }
    if (!writes) return;
    for (const Reader& r : readers_)
        if (r.clocks[granule] && !ordered(w, *cta_->cluster, r.rank, r.warp, r.clocks[granule]))
            report(w, lane, granule,
                   "a read by " + name_of(r.rank, r.warp) + ": the bytes are overwritten while they may still be read");
}

// Against what the CTA itself did.
void ClusterShadow::check_owner(Warp& w, int lane, u32 granule, bool writes, bool atomic) const {
    const SharedShadow& shadow = cta_->shadow;
    int shift = shadow.granule_shift();
    for (u32 g = granule * kGranule >> shift; g <= (granule * kGranule + kGranule - 1) >> shift; ++g) {
        u32 entry = shadow.write_entry(g);
        if (epoch::owned(entry)) {
            cta_->proxy.check_owned(w, lane, g << shift, entry);
        } else if (epoch::clock(entry) && !(atomic && (entry & epoch::kAtomic)) &&
                   !knows_remote(w, *cta_, epoch::warp(entry), epoch::clock(entry))) {
            report(w, lane, granule,
                   "the write by " + name_of(cta_->rank, epoch::warp(entry)) + " (" +
                       w.program->text_at(shadow.writer_pc(g)) + ")");
        }
        for (u32 warp = 0; writes && warp < cta_->warp_count; ++warp) {
            u32 lanes, clock = shadow.last_read(warp, g, lanes);
            if (clock && !knows_remote(w, *cta_, warp, clock))
                report(w, lane, granule,
                       "a read by " + name_of(cta_->rank, warp) + ": the bytes are overwritten while they may be read");
        }
    }
}

bool ClusterShadow::access(Warp& w, int lane, u32 offset, u32 bytes, RemoteAccess kind) {
    bool writes = kind != RemoteAccess::Read, atomic = kind == RemoteAccess::Atomic, defined = true;
    bool strict = w.cta->checks(kCheckRace);
    // A copy ends with the phase of an mbarrier of this CTA, which has to wait for it (check_copies_at_end).
    if (kind != RemoteAccess::Copy) note(w);
    else if (strict && cta_->finished())
        report(w, lane, offset / kGranule, "the end of that CTA, and the copy lands in its memory");
    int shift = cta_->shadow.granule_shift();
    for (u32 at = offset >> shift; at <= (offset + bytes - 1) >> shift; ++at)
        defined &= (cta_->shadow.write_entry(at) & epoch::kDefined) != 0;
    for (u32 granule = offset / kGranule; granule <= (offset + bytes - 1) / kGranule; ++granule) {
        if (strict) check_owner(w, lane, granule, writes, atomic);
        if (strict) check_marks(w, lane, granule, writes, atomic);
        if (kind == RemoteAccess::Copy) continue;  // the async proxy owns the bytes from now on
        if (!writes) {
            reader(w).clocks[granule] = w.clocks.known()[w.id];
            continue;
        }
        if (writes_.empty()) writes_.resize(cta_->shared.size() / kGranule + 1);
        writes_[granule] = {static_cast<u8>(w.cta->rank), static_cast<u8>(w.id), atomic, w.clocks.known()[w.id],
                            w.current_pc()};
    }
    return defined;
}

void ClusterShadow::check_own(Warp& w, int lane, u32 offset, u32 bytes, bool writes, bool atomic) const {
    if (!w.cta->checks(kCheckRace) || (writes_.empty() && readers_.empty())) return;
    for (u32 granule = offset / kGranule; granule <= (offset + bytes - 1) / kGranule; ++granule)
        check_marks(w, lane, granule, writes, atomic);
}

void ClusterShadow::check_exit() const {
    if (!cta_->checks(kCheckRace)) return;
    for (const Mark& m : last_) {
        if (!m.clock) continue;
        bool known = false;
        for (const Warp& w : cta_->warps) known |= knows_remote(w, cta_->cluster->cta(m.rank), m.warp, m.clock);
        if (known) continue;
        throw SimError(ErrorKind::Race, "CTA " + std::to_string(cta_->rank) +
                                            " of the cluster ends, and nothing orders " + name_of(m.rank, m.warp) +
                                            "'s use of its shared memory before that (" + cta_->program->text_at(m.pc) +
                                            "): wait for the others, as by barrier.cluster.");
    }
}

}  // namespace ptxsim
