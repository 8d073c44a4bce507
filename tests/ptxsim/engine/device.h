// A GPU of a given kind: its limits, its seed, and launches.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "cta.h"
#include "dependent_launch.h"

namespace ptxsim {

// Limits from the CUDA programming guide's table of compute capabilities; counts, sizes and clocks are those of a T4,
// an A100 80GB, an RTX A6000, an RTX 4090, an H100 SXM and an RTX 5090.
struct DeviceProfile {
    const char* name;
    int major, minor;
    u32 sm_count;
    u32 shared_per_block;  // static, and dynamic without opt-in
    u32 shared_per_block_optin;
    u32 shared_per_sm;
    u32 registers_per_block, max_threads_per_sm, max_blocks_per_sm;
    u64 global_bytes;
    u32 l2_bytes, clock_khz, memory_clock_khz, memory_bus_bits;
    u32 double_ratio;  // single-precision operations per double-precision one
    // Bytes of shared memory per block that the driver keeps for itself.
    u32 reserved_shared() const { return major >= 8 ? 1024 : 0; }
    u32 shared_unit() const { return major >= 8 ? 128 : 256; }
};
const DeviceProfile& find_profile(const std::string& name);
// Warps and CTAs of a kernel that one SM holds at a time.
u32 resident_warps(const Program& program, const DeviceProfile& profile);
u32 resident_ctas(const Program& program, const DeviceProfile& profile, u32 threads, u64 shared);

struct LaunchConfig {
    u32 grid[3] = {1, 1, 1}, block[3] = {1, 1, 1};
    std::vector<u8> params;
    u32 dynamic_shared = 0;
    bool cooperative = false;    // all CTAs are resident together, and the grid has a barrier
    u32 cluster[3] = {};         // CTAs of a cluster; 0: what the kernel says
    bool large_cluster = false;  // more than 8 CTAs were allowed, which not every GPU has
    bool programmatic = false;   // may start while the grid before it in its stream still runs
    const void* stream = nullptr;
};

struct Device {
    const DeviceProfile* profile;
    u64 seed = 0;
    int threads = 2;
    u32 checks = kAllChecks;
    u64 instruction_limit = 400'000'000;  // warp instructions of one CTA, before it counts as a livelock
    bool echo = true;                     // printf goes to stdout too
    std::function<void(const std::string& kernel, const LaunchReport&)> on_launch;

    Device(const std::string& profile_name, u64 seed, int threads, u32 checks)
        : profile(&find_profile(profile_name)), seed(seed), threads(threads), checks(checks) {}

    LaunchReport launch(const Program& program, const LaunchConfig& config);
    // The host has waited: no grid runs any more.
    void synchronise();
    void print(const std::string& text);
    std::string take_output();

  private:
    void check_limits(const Program& program, const LaunchConfig& config) const;
    std::mutex print_mutex_;
    std::string output_;
    u64 launches_ = 0;
    // By stream: the grids that may still run when a programmatic launch begins there.
    std::map<const void*, Prerequisites> running_;
};

}  // namespace ptxsim
