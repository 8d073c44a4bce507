#include "async_proxy.h"

#include <algorithm>

#include "cta.h"

namespace ptxsim {

namespace {
constexpr u32 kRow = 16;
std::string thread_name(u32 warp, u32 lanes) {
    return "warp " + std::to_string(warp) +
           (popcount(lanes) == 1 ? " lane " + std::to_string(__builtin_ctz(lanes)) : std::string());
}
}  // namespace

void AsyncProxy::reset(Cta& cta) {
    cta_ = &cta;
    fences_.assign(cta.warp_count, {});
    init_fences_.assign(cta.warp_count, {});
    readers_.clear();
    transfers_.clear();
    phases_.clear();
    cta.shadow.watch_reads(nullptr);
}

void AsyncProxy::note_fence(std::vector<Fence>& fences, const Warp& w) {
    const u32* limits = w.clocks.limits();
    fences.push_back({w.clocks.known()[w.id], w.active, Clock(limits, limits + cta_->warp_count)});
}

void AsyncProxy::fence(Warp& w) {
    note_fence(fences_[w.id], w);
    fence_init(w);
}

// The clock advances, so that what the lanes do next is after the fence and what is published next covers it.
void AsyncProxy::fence_init(Warp& w) {
    note_fence(init_fences_[w.id], w);
    w.clocks.advance();
}

u32 AsyncProxy::last_fence(const Warp& w) const {
    const std::vector<Fence>& fences = init_fences_[static_cast<size_t>(w.id)];
    return fences.empty() ? 0 : fences.back().clock + 1;
}

// Did what `other_lanes` of a warp did at that clock happen before what `lane` of w does next?
bool AsyncProxy::ordered(const Warp& w, int lane, u32 warp, u32 other_lanes, u32 clock) const {
    if (clock <= w.clocks.limit(warp)) return true;
    if (warp != static_cast<u32>(w.id)) return false;
    if (lane == kWholeWarp) return true;
    for (; other_lanes; other_lanes &= other_lanes - 1)
        if (!w.clocks.knows(lane, static_cast<u32>(__builtin_ctz(other_lanes)), clock)) return false;
    return true;
}

// Does a fence stand between what `lanes` of a warp did at that clock and what `lane` of w does next? Each of these
// lanes has fenced since; or someone has who comes after them, as everything up to the clocks it knew does.
bool AsyncProxy::fenced(const std::vector<std::vector<Fence>>& all, const Warp& w, int lane, u32 warp, u32 lanes,
                        u32 clock) const {
    const std::vector<Fence>& fences = all[warp];
    for (size_t i = fences.size(); i-- > 0 && fences[i].clock >= clock;) {
        u32 covered = fences[i].lanes & lanes;
        if (!covered || !ordered(w, lane, warp, covered, fences[i].clock + 1)) continue;
        lanes &= ~covered;
        if (!lanes) return true;
    }
    for (u32 n = 0, count = cta_->warp_count; n < count; ++n) {
        u32 other = (static_cast<u32>(w.id) + n) % count;  // its own fences are the likeliest
        for (size_t i = all[other].size(); i-- > 0 && all[other][i].known[warp] >= clock;) {
            const Fence& f = all[other][i];
            if (ordered(w, lane, other, f.lanes & -f.lanes, f.clock + 1)) return true;
        }
    }
    return false;
}

void AsyncProxy::report(const Warp& w, int lane, u32 offset, const std::string& message) const {
    SimError error(ErrorKind::Race,
                   "Race of the async proxy on shared memory at offset " + hex(offset) + ": " + message + ".");
    throw error.at_lane(lane == kWholeWarp ? (w.active ? __builtin_ctz(w.active) : 0) : lane).at_address(offset);
}

// ---- reads ----

AsyncProxy::Series* AsyncProxy::series(const Warp& w, AsyncReader kind) {
    for (auto& s : readers_)
        if (s->warp == w.id && s->kind == kind) return s.get();
    readers_.push_back(std::make_unique<Series>(w.id, kind, cta_->shared.size() / kRow + 1));
    cta_->shadow.watch_reads(this);
    return readers_.back().get();
}

u32 AsyncProxy::begin_read(Warp& w, AsyncReader kind) {
    Series& s = *series(w, kind);
    s.issued_at.resize(s.ended.size());
    s.issued_at.push_back(w.current_pc());
    s.ended.push_back(0);
    return static_cast<u32>(s.ended.size() - 1);
}

// Is the granule's last write visible to the async proxy for what `lane` does next?
void AsyncProxy::check_written(Warp& w, int lane, u32 offset, u32 granule, const char* what) const {
    const SharedShadow& shadow = cta_->shadow;
    u32 entry = shadow.write_entry(granule);
    if (epoch::clock(entry) == 0 && !epoch::owned(entry)) return;  // nobody wrote it
    if (epoch::owned(entry)) return check_owned(w, lane, offset, entry);
    cta_->shadow.check_ordered(w, lane, granule, entry);
    u32 warp = epoch::warp(entry), writer = 1u << epoch::lane(entry);
    if (!w.cta->checks(kCheckProxy) || fenced(fences_, w, lane, warp, writer, epoch::clock(entry))) return;
    report(
        w, lane, offset,
        std::string(what) + " bytes that " + thread_name(warp, writer) + " wrote through the generic proxy (" +
            w.program->text_at(shadow.writer_pc(granule)) +
            "): no fence.proxy.async stands between them, by that thread or by one that the write is ordered before");
}

bool AsyncProxy::read_rows(Warp& w, int lane, AsyncReader kind, u32 number, u32 offset, u32 bytes) {
    Series& s = *series(w, kind);
    const SharedShadow& shadow = cta_->shadow;
    int shift = shadow.granule_shift();
    u32 last = (offset + bytes - 1) >> shift, checked = ~shadow.write_entry(offset >> shift), known = epoch::kDefined;
    for (u32 g = offset >> shift; g <= last; ++g) {
        u32 entry = shadow.write_entry(g);
        if (entry != checked) check_written(w, lane, g << shift, g, "an asynchronous read of");
        checked = entry;
        known &= entry;
    }
    for (u32 row = offset / kRow; row <= (offset + bytes - 1) / kRow; ++row) s.last[row] = number;
    return known != 0;
}

bool AsyncProxy::read_piece(Warp& w, Reading& r, u32 offset) {
    const SharedShadow& shadow = cta_->shadow;
    int shift = shadow.granule_shift();
    u32 first = offset >> shift, known = epoch::kDefined;
    for (u32 g = first; g < first + (kRow >> shift); ++g) {
        u32 entry = shadow.write_entry(g);
        known &= entry;
        if (r.any && entry == r.checked) continue;
        check_written(w, kWholeWarp, g << shift, g, "wgmma reads");
        r.checked = entry;
        r.any = true;
    }
    r.last[offset / kRow] = r.number;
    return known != 0;
}

// What was published before the wait does not cover the read.
void AsyncProxy::end_read(Warp& w, AsyncReader kind, u32 number) {
    series(w, kind)->ended[number] = w.clocks.known()[w.id];
}

// With release_by_warp off: the warps of a warpgroup count their wgmma alike, and one warp's wait ends them for all.
bool AsyncProxy::ended_in_warpgroup(const Warp& w, u32 warp, u32 number) const {
    for (const auto& s : readers_) {
        u32 other = static_cast<u32>(s->warp);
        if (s->kind != AsyncReader::Wgmma || other / kWarpgroup != warp / kWarpgroup || number >= s->ended.size())
            continue;
        if (s->ended[number] && ordered(w, kWholeWarp, other, 0, s->ended[number])) return true;
    }
    return false;
}

void AsyncProxy::check_generic_write(const Warp& w, int lane, u32 offset, u32 bytes) const {
    if (!w.cta->checks(kCheckRace)) return;
    for (const auto& s : readers_) {
        u32 warp = static_cast<u32>(s->warp);
        for (u32 row = offset / kRow; row <= (offset + bytes - 1) / kRow; ++row) {
            u32 number = s->last[row];
            if (!number) continue;
            u32 end = s->ended[number];
            if (end && ordered(w, kWholeWarp, warp, 0, end)) continue;
            bool wgmma = s->kind == AsyncReader::Wgmma;
            if (wgmma && !w.cta->checks(kCheckReleaseByWarp) && ended_in_warpgroup(w, warp, number)) continue;
            report(
                w, lane, offset,
                "these bytes are written while " + std::string(wgmma ? "a wgmma" : "a bulk store") + " of warp " +
                    std::to_string(warp) + " may still read them (" + w.program->text_at(s->issued_at[number]) +
                    "): " + (end ? "the wait that ended it is not ordered before" : "that warp has not waited for it"));
        }
    }
}

// ---- writes ----

// "Without this fence" a read through the generic proxy may still be under way when the copy overwrites the bytes.
void AsyncProxy::check_read_before(Warp& w, int lane, u32 offset, u32 granule) const {
    if (!w.cta->checks(kCheckProxyWar)) return;
    const SharedShadow& shadow = cta_->shadow;
    for (u32 warp = 0; warp < cta_->warp_count; ++warp) {
        u32 readers = 0, clock = shadow.last_read(warp, granule, readers);
        if (!clock) continue;
        if (!readers) readers = cta_->warps[warp].clocks.all_lanes();
        if (fenced(fences_, w, lane, warp, readers, clock)) continue;
        report(w, lane, offset,
               "a copy overwrites bytes that " + thread_name(warp, readers) +
                   " read through the generic proxy: no fence.proxy.async stands between them");
    }
}

void AsyncProxy::begin_write(Warp& w, int lane, u32 offset, u32 bytes, MemoryBarrier& b) {
    SharedShadow& shadow = cta_->shadow;
    int shift = shadow.granule_shift();
    bool own_cta = w.cta == cta_;
    if (own_cta) {
        check_generic_write(w, lane, offset, bytes);
        shadow.check_reads_before(w, lane, offset >> shift, (offset + bytes - 1) >> shift);
    }
    for (u32 g = offset >> shift; g <= (offset + bytes - 1) >> shift; ++g) {
        if (own_cta) check_written(w, lane, g << shift, g, "a copy overwrites");
        if (own_cta) check_read_before(w, lane, g << shift, g);
        shadow.set_owner(g, epoch::make_owned(b.number, b.phase), w.current_pc());
    }
    ++b.copies;
}

void AsyncProxy::end_write(u32 offset, u32 bytes, bool defined) { cta_->shadow.define(offset, bytes, defined); }
void AsyncProxy::end_copy(MemoryBarrier& b) { --b.copies; }

void AsyncProxy::check_owned(Warp& w, int lane, u32 offset, u32 entry) const {
    if (epoch::is_object(entry)) {
        if (w.cta->checks(kCheckMbarrier))
            report(w, lane, offset, "an mbarrier object lies here; its bytes are opaque");
        return;
    }
    u32 barrier = epoch::owner(entry);
    if (phases_[barrier] <= epoch::owner_phase(entry)) {
        if (w.cta->checks(kCheckAsync))
            report(w, lane, offset,
                   "a bulk copy or an asynchronous store owns these bytes until the phase of its mbarrier completes");
    } else if (w.clocks.phases_known(cta_->warp_count + barrier) <= epoch::owner_phase(entry)) {
        if (w.cta->checks(kCheckRace))
            report(w, lane, offset,
                   "a bulk copy or an asynchronous store wrote these bytes, and this thread has neither waited for the "
                   "phase of its mbarrier nor "
                   "learnt of it");
    }
}

void AsyncProxy::check_signal(Warp& w, int lane, const MemoryBarrier& b) const {
    if (!w.cta->checks(kCheckProxy) || !w.cta->checks(kCheckInitFence) || w.cta != cta_) return;
    if (fenced(init_fences_, w, lane, b.init_warp, 1u << b.init_lane, b.init_clock)) return;
    report(w, lane, b.offset,
           "a copy signals this mbarrier, whose mbarrier.init by " + thread_name(b.init_warp, 1u << b.init_lane) +
               " was not followed by a fence.mbarrier_init or fence.proxy.async that is ordered before");
}

// ---- transfers ----

void AsyncProxy::start(std::unique_ptr<AsyncTransfer> transfer) {
    if (cta_->random.below(3) == 0) return transfer->land();
    transfers_.push_back(std::move(transfer));
}

bool AsyncProxy::progress(bool all) {
    if (transfers_.empty()) return false;
    bool any = false;
    std::vector<std::unique_ptr<AsyncTransfer>> waiting;
    waiting.swap(transfers_);
    for (size_t left = waiting.size(); left > 0; --left) {
        std::swap(waiting[left - 1], waiting[cta_->random.below(static_cast<u32>(left))]);
        std::unique_ptr<AsyncTransfer>& next = waiting[left - 1];
        if (all || cta_->random.below(2)) next->land(), any = true;
        else transfers_.push_back(std::move(next));
    }
    return any;
}

std::string AsyncProxy::describe_transfers() const {
    std::string text;
    for (const auto& t : transfers_) text += (text.empty() ? "" : "; ") + t->describe();
    return text;
}

u32 AsyncProxy::number_barrier(Cta& cta) {
    if (phases_.size() >= epoch::kMostOwners)
        throw SimError(ErrorKind::Unsupported,
                       "CTA " + std::to_string(cta.index) + " initialises more than 511 mbarriers.");
    phases_.push_back(0);
    return static_cast<u32>(phases_.size() - 1);
}

}  // namespace ptxsim
