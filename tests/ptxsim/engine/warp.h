// One warp: 32 lanes of registers in struct-of-arrays cells, and the fragments its lanes have split into.
#pragma once

#include <memory>
#include <vector>

#include "bulk_store.h"
#include "error.h"
#include "program.h"
#include "race_clock.h"

namespace ptxsim {

struct Cta;
struct WgmmaState;

struct Frame {
    u32 cells = 0, predicates = 0, local = 0;  // bases of this call's registers and local memory
    u32 return_pc = kNoPc;
    const FunctionLayout* layout = nullptr;
};

// Where the lanes of a divergent branch wait for each other: its immediate post-dominator.
struct Join {
    u32 pc = 0, expected = 0, arrived = 0;
    int parent = -1;
    u32 depth = 0;  // of calls
};

enum class FragmentState : u8 { Runnable, Parked, AtBarrier, AtWarpSync, AtMbarrier, AtRegisters, AtWarpgroup, Halted };

// Lanes that share a pc.
struct Fragment {
    u32 pc = 0, mask = 0;
    int join = -1;
    FragmentState state = FragmentState::Runnable;
    u32 sync_mask = 0;      // lanes this fragment waits for at a warp-level .sync
    int barrier = -1;       // the barrier it waits at
    bool released = false;  // the barrier it waited at has completed, or it has waited long enough
    u32 mbarrier = 0;       // the mbarrier it waits at until this phase completes
    u64 mbarrier_phase = 0;
    u32 registers = 0;  // that setmaxnreg waits for
    std::vector<Frame> frames;
};

// One cp.async of a warp that is still in flight (async_copy.cpp).
struct AsyncCopy {
    u32 mask = 0, group = 0;
    u8 bytes = 0;
    bool arrived = false;  // the data are in place already, though not visible yet
    u32 destination[kLanes];
    const u8* source[kLanes];
    u32 size[kLanes];     // bytes read; the rest of `bytes` is zero-filled
    u32 defined[kLanes];  // one bit a byte
};

struct Warp {
    // What handlers touch most.
    u32 active = 0;  // lanes executing the current op
    u32 next = 0;    // pc after the current op
    u32* files[3] = {};
    u32* defined_files[3] = {};
    u32* predicates = nullptr;
    u32* predicates_defined = nullptr;
    u32 carry = 0, carry_defined = kFull;

    Cta* cta = nullptr;
    const Program* program = nullptr;
    int id = 0;
    u32 alive = 0;  // lanes that have not exited
    Random random;

    std::vector<Fragment> fragments;
    std::vector<Join> joins;
    int current = 0;    // fragment being executed
    bool stop = false;  // the handler blocked, split or ended the current fragment

    WarpClocks clocks;
    // The release that `acquired_lanes` saw last, so that a polling loop looks at it once (race_release.cpp).
    u64 acquired_word = 0, acquired_version = 0;
    u32 acquired_lanes = 0;

    std::shared_ptr<WgmmaState> wgmma;  // from the warp's first wgmma on
    std::vector<AsyncCopy> copies;
    u32 commits[kLanes] = {};
    std::vector<BulkStore> bulk_stores;
    u32 bulk_commits[kLanes] = {};

    u32 local_stride = 0;  // bytes of local memory per lane
    std::vector<u8> local, local_defined;
    std::vector<u32> registers, register_defined, predicate_bits, predicate_defined_bits, specials;

    void start(Cta& owner, int index, u32 lanes, u64 seed);
    // Runs up to `quantum` ops; returns how many.
    u32 run(u32 quantum);
    bool finished() const { return alive == 0; }
    bool runnable() const;
    Fragment& fragment() { return fragments[current]; }
    u32 current_pc() const { return fragments[current].pc; }

    // Registers.
    template <class T>
    T* cells(Ref ref) {
        return reinterpret_cast<T*>(files[ref >> kFileShift] + (ref & kOffsetMask));
    }
    u32& defined(Ref ref) { return defined_files[ref >> kFileShift][(ref & kOffsetMask) / kLanes]; }
    void define(Ref dst, u32 lanes_defined) {
        u32& d = defined(dst);
        d = (d & ~active) | (lanes_defined & active);
    }
    void set_predicate(int index, u32 value, u32 lanes_defined) {
        u32 &p = predicates[index], &d = predicates_defined[index];
        p = (p & ~active) | (value & active);
        d = (d & ~active) | (lanes_defined & active);
    }
    u32 predicate_or(int index, u32 absent) const { return index < 0 ? absent : predicates[index]; }

    // Control (control.cpp, divergence.cpp).
    bool pick_fragment();
    u32 run_fragment(u32 quantum);
    void decide_undefined_guard(u32 lanes);
    void enter_frame();
    void reserve_local(u32 bytes);
    void push_frame(const FunctionLayout& callee, u32 return_pc);
    void diverge(const std::vector<std::pair<u32, u32>>& paths, u32 reconverge);
    void arrive_at_join();
    void close_join(int index);
    [[noreturn]] void fail_partial(u32 wanted) const;
    void exit_lanes(u32 lanes);
    void block(FragmentState state);
    // True when every lane of `wanted` executes this op now; otherwise the fragment waits, or it is an error.
    bool converge(u32 wanted);
    // An active lane that its own membermask does not name is an error.
    void check_members(u32 wanted) const;
    void resolve_waiting_fragments();
    // Fragments that wait at an mbarrier go on when its phase has completed; all of them if it `gave_up`.
    bool wake_at_mbarriers(bool gave_up);
    void wake_at_warpgroup();
    std::string describe_wait() const;

    void require_defined(u32 lanes_defined, const char* what) const;
    [[noreturn]] void fail(ErrorKind kind, const std::string& message, int lane = -1) const;
};

void report_undefined(const Warp& w, u32 lanes, const char* what);
// Definedness words of the files that are always defined.
const u32* constants_defined(size_t count);

inline void Warp::require_defined(u32 lanes_defined, const char* what) const {
    u32 bad = active & ~lanes_defined;
    if (__builtin_expect(bad != 0, 0)) report_undefined(*this, bad, what);
}

}  // namespace ptxsim
