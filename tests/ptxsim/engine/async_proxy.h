// The async proxy of one CTA (PTX ISA 8.3, 9.7.15, 9.7.9.27): what wgmma and bulk copies do to shared memory behind the
// threads' backs, and what a thread has to do before and after.
//
// - A generic write is seen by the async proxy only after a fence.proxy.async on the way from it to the asynchronous
//   operation: by its own thread, or by one that the write is ordered before (PTX ISA 8.9.4, "linked by a proxy fence
//   along the base causality path"). Checked against the writer's epoch in the race shadow.
// - An asynchronous read lasts from its issue until the wait that covers it. A write by anyone in between is a race,
// and
//   so is one that is not ordered after that wait.
// - What a bulk copy writes belongs to the async proxy from issue until the mbarrier's phase completes; later it is
//   visible to threads that learnt of that phase, by a wait or from one who waited.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "race_clock.h"

namespace ptxsim {

struct Cta;
struct MemoryBarrier;
struct Warp;

// A bulk copy that has been issued. `land` moves the bytes and tells the mbarrier; it is called once, at a moment the
// seed chooses.
struct AsyncTransfer {
    virtual ~AsyncTransfer() = default;
    virtual void land() = 0;
    virtual std::string describe() const = 0;  // of the copy, for a report of a deadlock
};

// Whose reads they are: each warp has one series of each kind, numbered from 1.
enum class AsyncReader : u8 { Wgmma, BulkStore };

class AsyncProxy {
  public:
    void reset(Cta& cta);

    // ---- fences: the active lanes' writes and reads so far are ordered with the async proxy
    void fence(Warp& w);
    // fence.mbarrier_init: the active lanes' mbarrier.init so far may be relied on by copies
    void fence_init(Warp& w);
    // The clock that covers a warp's last fence of either kind; 0 if there was none.
    u32 last_fence(const Warp& w) const;

    // ---- asynchronous reads of shared memory. `lane` issues them; kWholeWarp if all lanes do together.
    u32 begin_read(Warp& w, AsyncReader kind);
    // One read that is being checked. Most of what it reads was written alike, and is looked at once.
    struct Reading {
        u32* last;  // by row: the last read of it
        u32 number;
        u32 checked = 0;
        bool any = false;
    };
    Reading reading(const Warp& w, AsyncReader kind, u32 number) {
        return {series(w, kind)->last.data(), number, 0, false};
    }
    // Checks and marks 16 bytes at a multiple of 16, read by all lanes together; false if some of it is undefined.
    bool read_piece(Warp& w, Reading& r, u32 offset);
    // The same for any number of rows, read by one lane.
    bool read_rows(Warp& w, int lane, AsyncReader kind, u32 number, u32 offset, u32 bytes);
    // The warp has waited for it: what it does from now on is after the read.
    void end_read(Warp& w, AsyncReader kind, u32 number);

    // ---- asynchronous writes of shared memory, in whole rows of 16 bytes
    // Checks that `lane` may overwrite the rows; from now on they belong to the async proxy, undefined, until the phase
    // that barrier `b` is in completes. Counts the copy as one that this phase waits for.
    // (Of another CTA's warp, by multicast, only the ownership is checked.)
    void begin_write(Warp& w, int lane, u32 offset, u32 bytes, MemoryBarrier& b);
    // The bytes have landed; the rows are defined unless the source was not.
    void end_write(u32 offset, u32 bytes, bool defined);
    // One copy of begin_write's barrier has landed: call it before complete_transactions.
    static void end_copy(MemoryBarrier& b);

    // Before a copy of `lane` may signal it: the mbarrier's initialisation has been fenced and is ordered before.
    void check_signal(Warp& w, int lane, const MemoryBarrier& b) const;

    // ---- what generic accesses ask (race_shared.cpp)
    // A write of rows that some asynchronous read may still be reading.
    void check_generic_write(const Warp& w, int lane, u32 offset, u32 bytes) const;
    // An access of a granule that belongs to the async proxy or to an mbarrier.
    void check_owned(Warp& w, int lane, u32 offset, u32 entry) const;
    bool reads() const { return !readers_.empty(); }

    // ---- copies in flight
    // Lands at once or later, as the seed says.
    void start(std::unique_ptr<AsyncTransfer> transfer);
    // Some copies land; with `all`, every one. True if any did.
    bool progress(bool all);
    bool idle() const { return transfers_.empty(); }
    std::string describe_transfers() const;

    // ---- mbarriers, numbered in the order of their initialisation
    u32 number_barrier(Cta& cta);
    void complete_phase(u32 barrier, u64 phases) { phases_[barrier] = phases; }

  private:
    struct Fence {
        u32 clock, lanes;
        Clock known;  // what every warp had done that is ordered before it
    };
    struct Series {
        Series(int warp, AsyncReader kind, size_t rows) : warp(warp), kind(kind), last(rows, 0), ended(1, 0) {}
        int warp;
        AsyncReader kind;
        std::vector<u32> last;       // by row: the last read of it
        std::vector<u32> ended;      // by number: the warp's clock at the wait, 0 while the read lasts
        std::vector<u32> issued_at;  // by number: pc
    };
    Series* series(const Warp& w, AsyncReader kind);
    bool ended_in_warpgroup(const Warp& w, u32 warp, u32 number) const;
    bool ordered(const Warp& w, int lane, u32 warp, u32 other_lanes, u32 clock) const;
    void note_fence(std::vector<Fence>& fences, const Warp& w);
    bool fenced(const std::vector<std::vector<Fence>>& fences, const Warp& w, int lane, u32 warp, u32 lanes,
                u32 clock) const;
    void check_written(Warp& w, int lane, u32 offset, u32 granule, const char* what) const;
    void check_read_before(Warp& w, int lane, u32 offset, u32 granule) const;
    [[noreturn]] void report(const Warp& w, int lane, u32 offset, const std::string& message) const;

    Cta* cta_ = nullptr;
    std::vector<std::vector<Fence>> fences_, init_fences_;  // by warp, oldest first
    std::vector<std::unique_ptr<Series>> readers_;
    std::vector<std::unique_ptr<AsyncTransfer>> transfers_;
    std::vector<u64> phases_;  // by barrier: phases completed
};

}  // namespace ptxsim
