// Happens-before race detection and definedness on a CTA's shared memory.
//
// Each granule (4 bytes, or less if the program has narrower shared accesses) remembers its last write as an epoch
// (warp, lane, clock of that warp) and, for each warp, the clock of its last read. Warp clocks advance at
// synchronisation; a warp's clock vector says up to which clock of every other warp it is ordered after. An access
// races with an earlier one unless that one's epoch is within the accessor's limits.
#pragma once

#include <string>
#include <vector>

#include "base.h"

namespace ptxsim {

struct Warp;

namespace epoch {
constexpr u32 kDefined = 1u << 31, kAsync = 1u << 30, kAtomic = 1u << 29, kClockMask = (1u << 19) - 1;
inline u32 make(u32 warp, u32 lane, u32 clock, u32 flags) { return flags | warp << 24 | lane << 19 | clock; }
inline u32 warp(u32 e) { return (e >> 24) & 31; }
inline u32 lane(u32 e) { return (e >> 19) & 31; }
inline u32 clock(u32 e) { return e & kClockMask; }
}  // namespace epoch

// A read mark is clock << 7 | reader; readers 0-31 are lanes.
constexpr u32 kManyLanes = 32, kWholeWarp = 33;

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
    // The clock limits that follow from w.clock; call after every change of it.
    static void update_limits(Warp& w);

  private:
    void check_write_epoch(Warp& w, int lane, u32 granule, u32 entry, bool reading);
    bool same_store(const Warp& w, u32 granule, u32 entry, u32 offset, u32 bytes, const u8* data) const;
    void check_reads(Warp& w, int lane, u32 first, u32 last);
    [[noreturn]] void report(Warp& w, int lane, u32 granule, const std::string& other) const;
    void mark_read(Warp& w, int lane, u32 granule);
    u32 row_granules() const { return 16u >> shift_; }
    bool row_is_free(const Warp& w, u32 granule) const;
    void set_row(const Warp& w, u32 granule, u32 entry);

    int shift_ = 2;
    u32 granules_ = 0, warps_ = 0;
    std::vector<u32> writes_, writer_pc_, reads_;
};

}  // namespace ptxsim
