#include "device.h"

#include <cstdio>
#include <cstdlib>

#include "cluster.h"
#include "grid_barrier.h"
#include "race_global.h"
#include "scheduler.h"
#include "tensor_map.h"

namespace ptxsim {

const DeviceProfile& find_profile(const std::string& name) {
    // clang-format off
    static const DeviceProfile profiles[] = {
        {"sm_75", 7, 5, 40, 49152, 65536, 65536, 65536, 1024, 16, 16ull << 30, 4u << 20, 1590000, 5001000, 256, 32},
        {"sm_80", 8, 0, 108, 49152, 166912, 167936, 65536, 2048, 32, 80ull << 30, 40u << 20, 1410000, 1593000, 5120, 2},
        {"sm_86", 8, 6, 84, 49152, 101376, 102400, 65536, 1536, 16, 48ull << 30, 6u << 20, 1800000, 8001000, 384, 64},
        {"sm_89", 8, 9, 128, 49152, 101376, 102400, 65536, 1536, 24, 24ull << 30, 72u << 20, 2520000, 10501000, 384, 64},
        {"sm_90", 9, 0, 132, 49152, 232448, 233472, 65536, 2048, 32, 80ull << 30, 50u << 20, 1980000, 2619000, 5120, 2},
        {"sm_100", 10, 0, 148, 49152, 232448, 233472, 65536, 2048, 32, 180ull << 30, 126u << 20, 1965000, 3996000, 8192, 2},
        {"sm_103", 10, 3, 148, 49152, 232448, 233472, 65536, 2048, 32, 270ull << 30, 126u << 20, 2032000, 3996000, 8192, 64},
        {"sm_120", 12, 0, 170, 49152, 101376, 102400, 65536, 1536, 24, 32ull << 30, 96u << 20, 2407000, 14001000, 512, 64},
    };
    // clang-format on
    // sm_90a names the same device as sm_90: the `a` is one of targets.
    std::string plain = !name.empty() && name.back() == 'a' ? name.substr(0, name.size() - 1) : name;
    for (const DeviceProfile& p : profiles)
        if (plain == p.name) return p;
    throw SimError(ErrorKind::BadProgram, "No device profile `" + name +
                                              "`: there are sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_103 and "
                                              "sm_120.");
}

namespace {
constexpr u32 kRegisterUnit = 256, kSmPartitions = 4;
u32 round_up(u32 value, u32 to) { return (value + to - 1) / to * to; }
}  // namespace

// Registers are handed out to warps, from the partition of the SM on which the warp runs.
u32 resident_warps(const Program& program, const DeviceProfile& p) {
    u32 per_warp = round_up(static_cast<u32>(program.registers) * kLanes, kRegisterUnit);
    u32 warps = p.max_threads_per_sm / kLanes;
    return per_warp ? std::min(warps, p.registers_per_block / kSmPartitions / per_warp * kSmPartitions) : warps;
}

// As in the toolkit's cuda_occupancy.h, which knows no launch bounds.
u32 resident_ctas(const Program& program, const DeviceProfile& p, u32 threads, u64 shared) {
    u32 ctas = std::min(p.max_blocks_per_sm, resident_warps(program, p) / (round_up(threads, kLanes) / kLanes));
    u32 bytes = round_up(static_cast<u32>(shared) + p.reserved_shared(), p.shared_unit());
    return bytes ? std::min(ctas, p.shared_per_sm / bytes) : ctas;
}

namespace {

[[noreturn]] void limit(const Program& program, const std::string& why) {
    SimError error(ErrorKind::LaunchLimit, "The launch exceeds the device: " + why + ".");
    error.kernel = program.name;
    error.placed = true;
    error.compose();
    throw error;
}

std::string number(u64 n) { return std::to_string(n); }

void check_dimensions(const Program& program, const LaunchConfig& c) {
    const u64 grid_max[3] = {0x7fffffff, 65535, 65535}, block_max[3] = {1024, 1024, 64};
    for (int d = 0; d < 3; ++d) {
        const char axis = "xyz"[d];
        if (c.grid[d] == 0 || c.block[d] == 0) limit(program, std::string("an empty grid or block in ") + axis);
        if (c.grid[d] > grid_max[d])
            limit(program, std::string("grid.") + axis + " = " + number(c.grid[d]) + " > " + number(grid_max[d]));
        if (c.block[d] > block_max[d])
            limit(program, std::string("block.") + axis + " = " + number(c.block[d]) + " > " + number(block_max[d]));
    }
    u64 threads = static_cast<u64>(c.block[0]) * c.block[1] * c.block[2];
    if (threads > 1024) limit(program, number(threads) + " threads a block > 1024");
    u64 bound = static_cast<u64>(program.function->max_threads);
    if (bound && threads > bound)
        limit(program, number(threads) + " threads a block > the kernel's launch bound " + number(bound));
}

// Registers are handed out to warps in units of 256.
void check_registers(const Program& program, const LaunchConfig& c, const DeviceProfile& profile) {
    u64 warps = (static_cast<u64>(c.block[0]) * c.block[1] * c.block[2] + 31) / 32;
    u64 per_warp = (static_cast<u64>(program.registers) * 32 + 255) / 256 * 256;
    if (warps * per_warp > profile.registers_per_block) {
        limit(program, number(static_cast<u64>(program.registers)) + " registers x " + number(warps * 32) +
                           " threads > " + number(profile.registers_per_block) + " registers");
    }
}

void check_shared(const Program& program, const LaunchConfig& c, const DeviceProfile& profile) {
    u64 total = static_cast<u64>(program.static_shared) + c.dynamic_shared;
    if (program.static_shared > profile.shared_per_block)
        limit(program,
              number(program.static_shared) + " bytes of static shared memory > " + number(profile.shared_per_block));
    if (total > profile.shared_per_block_optin)
        limit(program, number(total) + " bytes of shared memory > " + number(profile.shared_per_block_optin) + " of " +
                           profile.name);
    if (total > profile.shared_per_block && c.dynamic_shared > program.max_dynamic_shared) {
        limit(program,
              number(c.dynamic_shared) + " bytes of dynamic shared memory > " + number(profile.shared_per_block) +
                  " without cudaFuncSetAttribute(MaxDynamicSharedMemorySize), which was " +
                  (program.max_dynamic_shared ? "set to " + number(program.max_dynamic_shared) : "not called"));
    }
}

// "the total number of blocks launched cannot exceed the maximum number of blocks per multiprocessor [...] times the
// number of multiprocessors" (cudaLaunchCooperativeKernel)
void check_residency(const Program& program, const LaunchConfig& c, const DeviceProfile& profile) {
    u64 ctas = static_cast<u64>(c.grid[0]) * c.grid[1] * c.grid[2];
    u32 threads = c.block[0] * c.block[1] * c.block[2];
    u64 shared = static_cast<u64>(program.static_shared) + c.dynamic_shared;
    u64 fit = static_cast<u64>(profile.sm_count) * resident_ctas(program, profile, threads, shared);
    if (ctas > fit)
        limit(program, number(ctas) + " CTAs of a cooperative launch > the " + number(fit) + " that " + profile.name +
                           " holds at a time");
}

u64 cluster_size(const LaunchConfig& c) { return static_cast<u64>(c.cluster[0]) * c.cluster[1] * c.cluster[2]; }

// 8 CTAs are portable; 16 are what a kernel may ask for by cudaFuncAttributeNonPortableClusterSizeAllowed.
void check_cluster(const Program& program, const LaunchConfig& c, const DeviceProfile& profile) {
    const u32* required = program.function->cluster;
    u64 size = cluster_size(c), most = c.large_cluster ? kLargestCluster : kPortableCluster;
    if (required[0] && !std::equal(required, required + 3, c.cluster))
        limit(program, "a cluster that is not the " + number(required[0]) + "x" + number(required[1]) + "x" +
                           number(required[2]) + " the kernel was compiled for");
    if (size == 1) return;
    if (profile.major < 9) limit(program, std::string("clusters, which ") + profile.name + " does not have");
    if (size > most) limit(program, "a cluster of " + number(size) + " CTAs > " + number(most));
    if (program.function->max_cluster && size > program.function->max_cluster)
        limit(program,
              "a cluster of " + number(size) + " CTAs > the kernel's " + number(program.function->max_cluster));
    for (int d = 0; d < 3; ++d)
        if (c.grid[d] % c.cluster[d])
            limit(program, std::string("grid.") + "xyz"[d] + " = " + number(c.grid[d]) +
                               " is no multiple of the cluster's " + number(c.cluster[d]));
}

// PTX for a later target may use what this device does not have.
void check_target(const Program& program, const DeviceProfile& profile) {
    const std::string& target = program.module->target;
    int have = profile.major * 10 + profile.minor, need = target.size() > 3 ? std::atoi(target.c_str() + 3) : 0;
    // "PTX for an architecture-specific target runs on devices of that compute capability only."
    bool exact = !target.empty() && target.back() == 'a';
    if (exact ? need == have : need <= have) return;
    SimError error(ErrorKind::BadProgram,
                   "The module is compiled for " + target + ", the device is " + profile.name + ".");
    error.kernel = program.name;
    error.compose();
    throw error;
}

}  // namespace

void Device::check_limits(const Program& program, const LaunchConfig& config) const {
    if (config.params.size() != program.param_bytes) {
        SimError error(ErrorKind::BadProgram, "Kernel " + program.name + " takes " + number(program.param_bytes) +
                                                  " bytes of parameters, the launch gives " +
                                                  number(config.params.size()) + ".");
        error.paragraph = error.message;
        throw error;
    }
    check_target(program, *profile);
    if (!(checks & kCheckLimits)) return;
    check_dimensions(program, config);
    check_registers(program, config, *profile);
    check_shared(program, config, *profile);
    check_cluster(program, config, *profile);
    if (config.cooperative) check_residency(program, config, *profile);
}

namespace {

void choose_cluster(const Program& program, LaunchConfig& config) {
    for (int d = 0; d < 3; ++d)
        if (config.cluster[d] == 0) config.cluster[d] = std::max(program.function->cluster[d], 1u);
}

std::vector<u32> find_maps(const std::vector<u8>& params) {
    std::vector<u32> offsets;
    for (u32 at = 0; at + kTensorMapBytes <= params.size(); at += kTensorMapAlign)
        if (begins_tensor_map(params.data() + at)) offsets.push_back(at);
    return offsets;
}

}  // namespace

LaunchReport Device::launch(const Program& program, const LaunchConfig& given) {
    LaunchConfig config = given;
    choose_cluster(program, config);
    check_limits(program, config);
    Launch launch;
    launch.program = &program;
    std::copy(config.grid, config.grid + 3, launch.grid);
    std::copy(config.block, config.block + 3, launch.block);
    std::copy(config.cluster, config.cluster + 3, launch.cluster);
    launch.params = config.params;
    launch.map_params = find_maps(config.params);
    launch.dynamic_shared = config.dynamic_shared;
    launch.shared_bytes = program.dynamic_begin + config.dynamic_shared;
    launch.seed = mix(seed * 0x51ed2701ull + 17);
    launch.checks = checks;
    launch.epoch = next_shadow_epoch();
    launch.id = ++launches_;
    launch.sm_count = profile->sm_count;
    std::unique_ptr<GridBarrier> grid_barrier = config.cooperative ? std::make_unique<GridBarrier>() : nullptr;
    launch.grid_barrier = grid_barrier.get();
    launch.memory = MemoryMap::instance().table();
    launch.device = this;
    launch.instruction_limit = instruction_limit;
    Prerequisites& running = running_[config.stream];
    Dependents dependents;
    launch.dependents = &dependents;
    if (config.programmatic && !running.epochs.empty()) launch.prerequisites = &running;
    LaunchReport report = run_grid(launch, threads);
    forget_releases(launch.id);
    if (!launch.prerequisites || !dependents.early) running.epochs.clear();
    running.epochs.push_back(launch.epoch);
    running.name = program.name;
    if (on_launch) on_launch(program.name, report);
    return report;
}

void Device::synchronise() { running_.clear(); }

void Device::print(const std::string& text) {
    std::lock_guard<std::mutex> lock(print_mutex_);
    output_ += text;
    if (echo) std::fputs(text.c_str(), stdout);
    if (echo) std::fflush(stdout);
}

std::string Device::take_output() {
    std::lock_guard<std::mutex> lock(print_mutex_);
    std::string text;
    text.swap(output_);
    return text;
}

}  // namespace ptxsim
