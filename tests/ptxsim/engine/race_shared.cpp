#include "race_shared.h"

#include <algorithm>

#include "cluster_shadow.h"
#include "cta.h"

namespace ptxsim {

namespace {

// Four granules of a 16-byte row, looked at together: rows are what cp.async writes and ldmatrix reads.
typedef u32 Row __attribute__((vector_size(16)));
typedef s32 SignedRow __attribute__((vector_size(16)));

Row load(const u32* p) {
    Row row;
    std::memcpy(&row, p, sizeof row);
    return row;
}
void store(u32* p, Row row) { std::memcpy(p, &row, sizeof row); }
Row splat(u32 x) { return Row{x, x, x, x}; }
bool any(Row row) {
    u64 halves[2];
    std::memcpy(halves, &row, sizeof row);
    return (halves[0] | halves[1]) != 0;
}

// The lanes whose reads at that clock are not ordered before what `lane` of the same warp does next.
u32 unknown_readers(const Warp& w, int lane, u32 readers, u32 clock) {
    u32 unknown = 0;
    for (u32 left = readers; left; left &= left - 1) {
        u32 other = static_cast<u32>(__builtin_ctz(left));
        if (!w.clocks.knows(lane, other, clock)) unknown |= 1u << other;
    }
    return unknown;
}

}  // namespace

void SharedShadow::reset(u32 bytes, int granule_shift, u32 warps) {
    shift_ = granule_shift;
    granules_ = (bytes >> granule_shift) + 1;
    warps_ = warps;
    writes_.assign(granules_, 0);
    writer_pc_.assign(granules_, 0);
    reads_.assign(static_cast<size_t>(granules_) * warps, 0);
    readers_.resize(reads_.size());  // of a read at clock 0, that is of none, they mean nothing
}

void SharedShadow::report(Warp& w, int lane, u32 granule, const std::string& other) const {
    u32 offset = granule << shift_;
    SimError error(ErrorKind::Race, "Race on shared memory at offset " + hex(offset) + ": warp " +
                                        std::to_string(w.id) + (lane < 0 ? "" : " lane " + std::to_string(lane)) +
                                        " is not ordered after " + other + ".");
    error.at_lane(lane).at_address(offset);
    throw error;
}

void SharedShadow::check_write_epoch(Warp& w, int lane, u32 granule, u32 entry, bool reading) {
    if (epoch::owned(entry)) return w.cta->proxy.check_owned(w, lane, granule << shift_, entry);
    if (entry & epoch::kAsync && w.cta->checks(kCheckAsync)) {
        report(w, lane, granule,
               std::string("the cp.async of warp ") + std::to_string(epoch::warp(entry)) + " lane " +
                   std::to_string(epoch::lane(entry)) + " to the same bytes (" +
                   w.program->text_at(writer_pc_[granule]) +
                   "), which is still in flight: its thread has not waited for it");
    }
    if (!w.cta->checks(kCheckRace)) return;
    u32 other = epoch::warp(entry);
    if (epoch::clock(entry) <= w.clocks.limit(other)) return;
    if (other == static_cast<u32>(w.id) && w.clocks.knows(lane, epoch::lane(entry), epoch::clock(entry))) return;
    report(w, lane, granule,
           std::string(reading ? "the write" : "an earlier write") + " by warp " + std::to_string(other) + " lane " +
               std::to_string(epoch::lane(entry)) + " (" + w.program->text_at(writer_pc_[granule]) +
               "): no barrier between them");
}

// Looks at all marks without branches first; the culprit is searched only if there is one.
void SharedShadow::check_reads(Warp& w, int lane, u32 first, u32 last) {
    if (!w.cta->checks(kCheckRace)) return;
    u32 late = 0;
    for (u32 other = 0; other < warps_; ++other) {
        const u32* marks = reads_.data() + static_cast<size_t>(other) * granules_;
        for (u32 g = first; g <= last; ++g) late |= marks[g] > w.clocks.limit(other) ? 1u << other : 0u;
    }
    for (; late; late &= late - 1) {
        u32 other = static_cast<u32>(__builtin_ctz(late));
        for (u32 g = first; g <= last; ++g) {
            size_t at = static_cast<size_t>(other) * granules_ + g;
            if (reads_[at] <= w.clocks.limit(other)) continue;
            u32 readers = readers_[at];
            if (other == static_cast<u32>(w.id)) readers = unknown_readers(w, lane, readers, reads_[at]);
            if (other == static_cast<u32>(w.id) && !readers) continue;
            report(w, lane, g,
                   "a read by warp " + std::to_string(other) +
                       (popcount(readers) == 1 ? " lane " + std::to_string(__builtin_ctz(readers)) : "") +
                       ": the bytes are overwritten while they may still be read");
        }
    }
}

// Reads that nothing orders stay marked together. Lanes with clocks of their own then share the oldest one, so that no
// read is taken for a later one.
void SharedShadow::mark_read(Warp& w, int lane, u32 granule) {
    size_t at = static_cast<size_t>(w.id) * granules_ + granule;
    u32 now = lane == kWholeWarp ? w.clocks.known()[w.id] : w.clocks.now(lane);
    u32 reader = lane == kWholeWarp ? 0 : 1u << lane;
    if (reads_[at] > w.clocks.limit(w.id)) {
        if (w.clocks.split() && (readers_[at] & ~reader)) now = std::min(now, reads_[at]);
        reader |= readers_[at];
    }
    reads_[at] = now;
    readers_[at] = reader;
}

bool SharedShadow::read(Warp& w, int lane, u32 offset, u32 bytes) {
    u32 first = offset >> shift_, last = (offset + bytes - 1) >> shift_, defined = epoch::kDefined;
    u32 checked = ~writes_[first];
    if (remote_) remote_->check_own(w, lane, offset, bytes, false);
    for (u32 g = first; g <= last; ++g) {
        u32 entry = writes_[g];
        if (entry != checked) {  // rows are written with one epoch: most words need no second look
            check_write_epoch(w, lane, g, entry, true);
            checked = entry;
        }
        defined &= entry;
        mark_read(w, lane, g);
    }
    return defined != 0;
}

// A row is mostly written by one lane at one time, and read by nobody else of the warp since: one look suffices then.
bool SharedShadow::read_row(Warp& w, u32 offset) {
    u32 begin = offset >> shift_, end = begin + row_granules(), first = writes_[begin];
    u32* marks = reads_.data() + static_cast<size_t>(w.id) * granules_;
    u32* readers = readers_.data() + static_cast<size_t>(w.id) * granules_;
    SignedRow synced = (SignedRow)splat(w.clocks.limit(w.id));
    Row unlike{};
    for (u32 g = begin; g < end; g += 4) {
        Row others = (Row)((SignedRow)load(marks + g) > synced) & load(readers + g);  // have read since the last sync
        unlike |= (load(writes_.data() + g) ^ splat(first)) | others;
    }
    bool plain = !remote_ && !any(unlike) && (first & (epoch::kDefined | epoch::kAsync)) == epoch::kDefined &&
                 epoch::clock(first) <= w.clocks.limit(epoch::warp(first));
    if (!plain) return read(w, kWholeWarp, offset, 16);
    for (u32 g = begin; g < end; g += 4) {
        store(marks + g, splat(w.clocks.known()[w.id]));
        store(readers + g, Row{});
    }
    return true;
}

// True if a write of the row by this warp conflicts with nothing; false if it takes a closer look.
bool SharedShadow::row_is_free(const Warp& w, u32 begin) const {
    u32 first = writes_[begin], end = begin + row_granules();
    if ((first & epoch::kAsync) || epoch::clock(first) > w.clocks.limit(epoch::warp(first))) return false;
    Row late{};
    for (u32 g = begin; g < end; g += 4) late |= load(writes_.data() + g) ^ splat(first);
    const u32* marks = reads_.data();
    for (u32 other = 0; other < warps_; ++other, marks += granules_) {
        SignedRow limit = (SignedRow)splat(w.clocks.limit(other));  // clocks are too short to be negative
        for (u32 g = begin; g < end; g += 4) late |= (Row)((SignedRow)load(marks + g) > limit);
    }
    return !any(late);
}

void SharedShadow::set_row(const Warp& w, u32 begin, u32 entry) {
    for (u32 g = begin; g < begin + row_granules(); g += 4) {
        store(writes_.data() + g, splat(entry));
        store(writer_pc_.data() + g, splat(w.current_pc()));
    }
}

bool SharedShadow::same_store(const Warp& w, u32 granule, u32 entry, u32 offset, u32 bytes, const u8* data) const {
    if (!data || epoch::owned(entry) || epoch::warp(entry) != static_cast<u32>(w.id)) return false;
    if (epoch::clock(entry) != w.clocks.now(static_cast<int>(epoch::lane(entry)))) return false;
    if (writer_pc_[granule] != w.current_pc()) return false;
    u32 begin = std::max(granule << shift_, offset), end = std::min((granule + 1) << shift_, offset + bytes);
    return std::memcmp(w.cta->shared.data() + begin, data + (begin - offset), end - begin) == 0;
}

void SharedShadow::write(Warp& w, int lane, u32 offset, u32 bytes, bool defined, const u8* data) {
    u32 first = offset >> shift_, last = (offset + bytes - 1) >> shift_;
    u32 mine = epoch::make(w.id, lane, w.clocks.now(lane), defined ? epoch::kDefined : 0);
    u32 pc = w.current_pc();
    if (proxy_) proxy_->check_generic_write(w, lane, offset, bytes);
    if (remote_) remote_->check_own(w, lane, offset, bytes, true);
    if (bytes == 16 && offset % 16 == 0 && row_is_free(w, first)) return set_row(w, first, mine);
    check_reads(w, lane, first, last);
    for (u32 g = first; g <= last; ++g) {
        if (writes_[g] != mine && !same_store(w, g, writes_[g], offset, bytes, data))
            check_write_epoch(w, lane, g, writes_[g], false);
        writes_[g] = mine;
        writer_pc_[g] = pc;
    }
}

bool SharedShadow::atomic(Warp& w, int lane, u32 offset, u32 bytes) {
    u32 first = offset >> shift_, last = (offset + bytes - 1) >> shift_;
    bool defined = true;
    if (proxy_) proxy_->check_generic_write(w, lane, offset, bytes);
    if (remote_) remote_->check_own(w, lane, offset, bytes, true, true);
    check_reads(w, lane, first, last);
    for (u32 g = first; g <= last; ++g) {
        u32 entry = writes_[g];
        defined &= (entry & epoch::kDefined) != 0;
        if ((entry & epoch::kOwned) != epoch::kAtomic) check_write_epoch(w, lane, g, entry, false);
        writes_[g] = epoch::make(w.id, lane, w.clocks.now(lane), (entry & epoch::kDefined) | epoch::kAtomic);
        writer_pc_[g] = w.current_pc();
    }
    return defined;
}

void SharedShadow::atomic_store(Warp& w, int lane, u32 offset, u32 bytes, bool defined) {
    atomic(w, lane, offset, bytes);
    define(offset, bytes, defined);
}

void SharedShadow::define(u32 offset, u32 bytes, bool defined) {
    u32 flag = defined ? epoch::kDefined : 0;
    for (u32 g = offset >> shift_; g <= (offset + bytes - 1) >> shift_; ++g)
        writes_[g] = (writes_[g] & ~epoch::kDefined) | flag;
}

void SharedShadow::begin_async(Warp& w, int lane, u32 offset, u32 bytes) {
    u32 first = offset >> shift_;
    if (proxy_) proxy_->check_generic_write(w, lane, offset, bytes);
    if (remote_) remote_->check_own(w, lane, offset, bytes, true);
    if (bytes == 16 && offset % 16 == 0 && row_is_free(w, first)) {
        return set_row(w, first, epoch::make(w.id, lane, w.clocks.now(lane), epoch::kAsync));
    }
    write(w, lane, offset, bytes, false, nullptr);
    for (u32 g = offset >> shift_; g <= (offset + bytes - 1) >> shift_; ++g) writes_[g] |= epoch::kAsync;
}

void SharedShadow::complete_async(Warp& w, int lane, u32 offset, u32 bytes, u32 defined_bytes) {
    if (bytes == 16 && offset % 16 == 0 && (defined_bytes & 0xffff) == 0xffff) {
        Row entry = splat(epoch::make(w.id, lane, w.clocks.now(lane), epoch::kDefined));
        u32 begin = offset >> shift_;
        for (u32 g = begin; g < begin + row_granules(); g += 4) store(writes_.data() + g, entry);
        return;
    }
    u32 granule_bits = (1u << (1 << shift_)) - 1;
    for (u32 at = 0; at < bytes; at += 1u << shift_) {
        u32 known = (defined_bytes >> at) & granule_bits;
        writes_[(offset + at) >> shift_] =
            epoch::make(w.id, lane, w.clocks.now(lane), known == granule_bits ? epoch::kDefined : 0);
    }
}

}  // namespace ptxsim
