// Happens-before race detection and definedness on a CTA's shared memory.
//
// Each granule (4 bytes, or less if the program has narrower shared accesses) remembers its last write as an epoch
// (warp, lane, clock of that lane) and, for each warp, the clock of its last read with the lanes that read then. An
// access races with an earlier one unless the accessor's clocks (race_clock.h) order it.
#pragma once

#include <string>
#include <vector>

#include "race_clock.h"

namespace ptxsim {

struct Warp;
class AsyncProxy;
class ClusterShadow;

// A last write. Two flags together, kAsync and kAtomic, say that the granule belongs to the async proxy: until phase
// `owner_phase` of the mbarrier number `owner` completes, or as part of an mbarrier object.
namespace epoch {
constexpr u32 kDefined = 1u << 31, kAsync = 1u << 30, kAtomic = 1u << 29, kClockMask = kLastClock;
inline u32 make(u32 warp, u32 lane, u32 clock, u32 flags) { return flags | warp << 24 | lane << 19 | clock; }
inline u32 warp(u32 e) { return (e >> 24) & 31; }
inline u32 lane(u32 e) { return (e >> 19) & 31; }
inline u32 clock(u32 e) { return e & kClockMask; }
constexpr u32 kOwned = kAsync | kAtomic, kMostOwners = 511, kOwnerPhases = 1u << 20;
inline bool owned(u32 e) { return (e & kOwned) == kOwned; }
inline u32 make_owned(u32 barrier, u64 phase) { return kOwned | barrier << 20 | (phase & (kOwnerPhases - 1)); }
inline u32 owner(u32 e) { return (e >> 20) & 511; }
inline u32 owner_phase(u32 e) { return e & (kOwnerPhases - 1); }
constexpr u32 kObject = kOwned | kMostOwners << 20;
inline bool is_object(u32 e) { return (e | kDefined) == (kObject | kDefined); }
}  // namespace epoch

// The reader of a matrix row, whose lanes all execute the instruction together: it conflicts with no lane of its warp.
constexpr int kWholeWarp = -1;

class SharedShadow {
  public:
    void reset(u32 bytes, int granule_shift, u32 warps);
    int granule_shift() const { return shift_; }

    // Bytes of shared memory whose value is undefined are told by the result: true = all defined.
    bool read(Warp& w, int lane, u32 offset, u32 bytes);
    // Lanes of one instruction may write one word if they write the same value: `data` is what is about to be stored.
    void write(Warp& w, int lane, u32 offset, u32 bytes, bool defined, const u8* data);
    // The whole warp reads 16 bytes, a matrix row: the path of ldmatrix.
    bool read_row(Warp& w, u32 offset);
    // Atomics conflict with plain accesses but not with each other.
    bool atomic(Warp& w, int lane, u32 offset, u32 bytes);
    void define(u32 offset, u32 bytes, bool defined);
    void atomic_store(Warp& w, int lane, u32 offset, u32 bytes, bool defined);
    // A cp.async destination: written from now on, undefined until complete() by the issuing thread.
    void begin_async(Warp& w, int lane, u32 offset, u32 bytes);
    void complete_async(Warp& w, int lane, u32 offset, u32 bytes, u32 defined_bytes);

    // ---- for the async proxy
    u32 write_entry(u32 granule) const { return writes_[granule]; }
    u32 writer_pc(u32 granule) const { return writer_pc_[granule]; }
    // The clock of that warp's last read and its lanes, none for the whole warp; 0 if it never read.
    u32 last_read(u32 warp, u32 granule, u32& lanes) const {
        size_t at = static_cast<size_t>(warp) * granules_ + granule;
        lanes = readers_[at];
        return reads_[at];
    }
    void check_ordered(Warp& w, int lane, u32 granule, u32 entry) { check_write_epoch(w, lane, granule, entry, true); }
    void check_reads_before(Warp& w, int lane, u32 first, u32 last) { check_reads(w, lane, first, last); }
    void set_owner(u32 granule, u32 entry, u32 pc) {
        writes_[granule] = entry;
        writer_pc_[granule] = pc;
    }
    // Writes are to be checked against asynchronous reads too.
    void watch_reads(const AsyncProxy* proxy) { proxy_ = proxy; }
    // Accesses are to be checked against those of other CTAs of the cluster.
    void watch_cluster(const ClusterShadow* remote) { remote_ = remote; }

  private:
    void check_write_epoch(Warp& w, int lane, u32 granule, u32 entry, bool reading);
    bool same_store(const Warp& w, u32 granule, u32 entry, u32 offset, u32 bytes, const u8* data) const;
    void check_reads(Warp& w, int lane, u32 first, u32 last);
    [[noreturn]] void report(Warp& w, int lane, u32 granule, const std::string& other) const;
    void mark_read(Warp& w, int lane, u32 granule);
    u32 row_granules() const { return 16u >> shift_; }
    bool row_is_free(const Warp& w, u32 granule) const;
    void set_row(const Warp& w, u32 granule, u32 entry);

    const AsyncProxy* proxy_ = nullptr;
    const ClusterShadow* remote_ = nullptr;
    int shift_ = 2;
    u32 granules_ = 0, warps_ = 0;
    std::vector<u32> writes_, writer_pc_;
    std::vector<u32> reads_, readers_;  // by warp and granule: clock of the last read, and the lanes that read then
};

}  // namespace ptxsim
