// What a launch did, counted per pc and summed by class and by source line.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base.h"

namespace ptxsim {

struct Program;

// Per pc, per worker thread.
struct Profile {
    u64 issues = 0, lanes = 0;
    u64 wavefronts = 0, ideal_wavefronts = 0;  // shared memory
    u64 sectors = 0;                           // global memory, 32 bytes each
};

struct Counters {
    u64 mma_flop = 0, ex2 = 0;
    u64 global_distinct_bytes = 0;
    u64 async_bytes = 0;
    u64 atomic_bytes = 0;  // operands of atom and red on global memory, which L2 adds up
    u64 wgmma_flop = 0, wgmma_shared_bytes = 0;
    u64 bulk_global_bytes = 0, bulk_shared_bytes = 0;   // of bulk loads: read from L2, written to shared memory
    u64 bulk_stored_bytes = 0, bulk_reduced_bytes = 0;  // of bulk stores and reductions
    // How often a warp has waited: at barriers of its CTA and of its cluster, for phases of mbarriers (and how many
    // polls found one incomplete, which the seed decides), for groups of wgmma and of bulk stores.
    u64 barrier_waits = 0, cluster_waits = 0, mbarrier_waits = 0, mbarrier_retries = 0, wgmma_waits = 0, bulk_waits = 0;
    void add(const Counters& other);
};

// Shared-memory passes of one access: lanes' addresses (byte offsets), `bytes` each, 32 banks of 4 bytes.
void count_wavefronts(Profile& profile, const u32* offsets, u32 mask, u32 bytes);
// ldmatrix reads 8 rows of 16 bytes a pass.
void count_row_wavefronts(Profile& profile, const u32* offsets, int rows);
void count_sectors(Profile& profile, const u64* addresses, u32 mask, u32 bytes);

struct LineCounters {
    u64 issues = 0, lanes = 0, wavefronts = 0, ideal_wavefronts = 0, sectors = 0;
    int ptx_line = 0;
};

struct LaunchReport {
    std::map<std::string, double> totals;
    std::map<std::string, LineCounters> lines;  // by source line
    std::map<int, LineCounters> ptx_lines;
};

LaunchReport summarise(const Program& program, const std::vector<Profile>& profile, const Counters& counters);

}  // namespace ptxsim
