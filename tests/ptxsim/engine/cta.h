// One thread block: its warps, shared memory, barriers, and the turn each warp gets.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "async_proxy.h"
#include "counters.h"
#include "mbarrier.h"
#include "memory_map.h"
#include "race_release.h"
#include "race_shared.h"
#include "warp.h"
#include "warpgroup.h"

namespace ptxsim {

class Cluster;
class ClusterShadow;
struct Device;
class GridBarrier;
class Prerequisites;
struct Dependents;

// What all CTAs of a launch share.
struct Launch {
    const Program* program = nullptr;
    u32 grid[3] = {1, 1, 1}, block[3] = {1, 1, 1};
    u32 cluster[3] = {1, 1, 1};  // CTAs
    std::vector<u8> params;
    std::vector<u32> map_params;               // offsets of the tensor maps among them
    u32 dynamic_shared = 0, shared_bytes = 0;  // shared_bytes counts from address 0
    u64 seed = 0;
    u32 checks = kAllChecks;
    u32 epoch = 0;
    u32 sm_count = 1;
    u64 id = 0;
    std::shared_ptr<const AllocationTable> memory;
    Device* device = nullptr;
    u64 instruction_limit = 0;
    GridBarrier* grid_barrier = nullptr;           // of a cooperative launch
    const Prerequisites* prerequisites = nullptr;  // of a programmatic launch: grids that may still run
    Dependents* dependents = nullptr;
    u32 threads() const { return block[0] * block[1] * block[2]; }
    u32 cluster_size() const { return cluster[0] * cluster[1] * cluster[2]; }
};

struct Barrier {
    u32 expected = 0;  // threads; 0 = no arrival yet
    bool counted = false;
    u32 arrived = 0;
    u32 population = 0;  // of bar.red
    bool all = true, any = false;
    Clock clock;
    u32 last_population = 0;
    bool last_all = true, last_any = false;
};

constexpr int kBarriers = 16;
constexpr u32 kPolls = 512;  // strong loads in one turn after which a CTA counts as waiting for another

struct Cta {
    Cta();
    ~Cta();
    const Launch* launch = nullptr;
    const Program* program = nullptr;
    u32 index = 0;  // linear, in grid order
    u32 ctaid[3] = {};
    Cluster* cluster = nullptr;
    u32 rank = 0;                           // in the cluster
    std::unique_ptr<ClusterShadow> remote;  // what other CTAs of the cluster do to the shared memory, if there are any
    u32 warp_count = 0, thread_count = 0;
    std::vector<u8> shared;
    SharedShadow shadow;
    AsyncProxy proxy;
    std::vector<Warpgroup> warpgroups;
    RegisterPool register_pool;  // from the first setmaxnreg on
    Barrier barriers[kBarriers];
    std::map<u32, MemoryBarrier> memory_barriers;
    std::map<u32, u64> copied_phases;  // by offset of an mbarrier: the last phase that bulk copies signal
    std::vector<Warp> warps;
    Profile* profile = nullptr;  // of the worker thread, one entry a pc
    Counters* counters = nullptr;
    Random random;
    u64 issued = 0;
    u64 events = 0;          // arrivals, completed barriers and landed copies: what may end a wait
    u32 polls = 0;           // strong loads of global memory in this turn
    Releases releases;       // what fences, atomics and strong accesses have put in order
    u32 whole_barriers = 0;  // completed barriers of all warps, and what each warp had done at the last one
    Clock at_whole_barrier;
    u32 epoch = 0;       // of the race shadow of global memory; a grid barrier begins a new one
    u32 grid_phase = 0;  // grid barriers passed
    bool at_grid_barrier = false;
    bool stuck = false;        // no warp can move, but another CTA of the cluster may change that
    Clock past_prerequisites;  // by warp: the clock of its griddepcontrol.wait
    Allocation* last_allocation = nullptr;

    void start(const Launch& launch, u32 linear_index);
    // Runs about `budget` warp instructions, or until it waits for other CTAs; true when the CTA has finished.
    bool run(u64 budget);
    bool waits() const { return polls >= kPolls; }
    bool checks(u32 bit) const { return launch->checks & bit; }
    void on_lanes_exit();
    void locate(SimError& error, const Warp& warp) const;

    // sync.cpp
    void complete_if_full(int id);

    bool finished() const;
    [[noreturn]] void report_deadlock() const;

  private:
    void note_whole_barrier(const Clock& clock);
    void finish();
    bool step(u64 budget, u64& done);
    bool release_stalled();
    std::string describe_barriers() const;
    void set_aside(Warp& warp, SimError& error);
    u64 stalled_at_ = 0;                   // `events` when no warp could move
    u32 stalls_ = 0;                       // how often since
    std::unique_ptr<SimError> undefined_;  // an error that a race may explain
    u64 undefined_at_ = 0;                 // `issued` then
};

}  // namespace ptxsim
