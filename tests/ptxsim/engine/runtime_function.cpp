// What host code asks about a kernel, and sets: its attributes, its parameters, how many of its blocks an SM holds.
#include <algorithm>

#include "runtime.h"

using ptxsim::DeviceProfile;
using ptxsim::HostFunction;
using ptxsim::Program;
using ptxsim::Runtime;
using ptxsim::u32;
using ptxsim::u64;

namespace {

Runtime& runtime() { return Runtime::instance(); }

// cudaFuncAttribute
constexpr int kMaxDynamicShared = 8, kCarveout = 9, kRequiredCluster = 11, kLargeCluster = 14, kClusterPolicy = 15;

constexpr u32 kMaxBlockThreads = 1024;

int set_dynamic_shared(const void* host, int value) {
    HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    u32 limit = 0, fixed = 0;
    int code = runtime().guarded([&] {
        limit = runtime().device().profile->shared_per_block_optin;
        fixed = runtime().program(*f)->static_shared;
    });
    if (code) return code;
    if (value < 0 || static_cast<u32>(value) + fixed > limit) return runtime().fail(ptxsim::kCudaInvalidValue);
    f->dynamic_shared_limit = static_cast<u32>(value);
    return ptxsim::kCudaSuccess;
}

int allow_large_cluster(const void* host, int value) {
    HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    f->large_cluster = value != 0;
    return ptxsim::kCudaSuccess;
}

u32 resident_blocks(const HostFunction& f, const Program& program, u32 threads, u64 dynamic) {
    const DeviceProfile& p = *runtime().device().profile;
    u64 shared = program.static_shared + dynamic;
    bool opted_in = dynamic <= f.dynamic_shared_limit && shared <= p.shared_per_block_optin;
    if (threads > kMaxBlockThreads || (shared > p.shared_per_block && !opted_in)) return 0;
    return ptxsim::resident_ctas(program, p, threads, shared);
}

// cudaFuncAttributes
struct FunctionAttributes {
    std::size_t shared, constant, local;
    int max_threads, registers, ptx_version, binary_version, cache_mode, max_dynamic_shared, carveout;
    int cluster_must_be_set, cluster[3], cluster_policy, non_portable_cluster, reserved[16];
};
static_assert(sizeof(FunctionAttributes) == 144, "cudaFuncAttributes of CUDA 13");

FunctionAttributes attributes_of(const HostFunction& f, const Program& program) {
    const DeviceProfile& p = *runtime().device().profile;
    FunctionAttributes out{};
    out.shared = program.static_shared;
    for (const ptxsim::Variable& v : program.module->variables)
        if (v.space == ptxsim::Space::Const) out.constant += v.size;
    out.local = static_cast<std::size_t>(program.spill_bytes) + program.functions[0].local_bytes;
    u32 bound = program.function->max_threads ? static_cast<u32>(program.function->max_threads) : kMaxBlockThreads;
    out.max_threads = static_cast<int>(std::min(bound, ptxsim::resident_warps(program, p) * ptxsim::kLanes));
    out.registers = program.registers;
    out.ptx_version = std::atoi(program.module->target.c_str() + 3);  // sm_80
    out.binary_version = p.major * 10 + p.minor;
    out.max_dynamic_shared =
        static_cast<int>(std::max(f.dynamic_shared_limit, p.shared_per_block - program.static_shared));
    out.carveout = -1;  // cudaSharedmemCarveoutDefault
    for (int d = 0; d < 3; ++d) out.cluster[d] = static_cast<int>(program.function->cluster[d]);
    out.cluster_must_be_set = out.cluster[0] != 0;
    out.non_portable_cluster = f.large_cluster;
    return out;
}

// Runs ask(function, program) for a registered kernel.
template <class Ask>
int about(const void* host, Ask ask) {
    HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    return runtime().guarded([&] { ask(*f, *runtime().program(*f)); });
}

}  // namespace

extern "C" {

int cudaFuncSetAttribute(const void* function, int attribute, int value) {
    if (attribute == kMaxDynamicShared) return set_dynamic_shared(function, value);
    if (attribute == kLargeCluster) return allow_large_cluster(function, value);
    if (attribute == kClusterPolicy) return ptxsim::kCudaSuccess;  // a hint
    if (attribute >= kRequiredCluster && attribute < kLargeCluster)
        return runtime().refuse("cudaFuncSetAttribute(" + std::to_string(attribute) +
                                "), a required cluster dimension");
    return attribute == kCarveout ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidValue);
}
// Preferences for caches and banks: nothing here depends on them.
int cudaFuncSetCacheConfig(const void*, int) { return ptxsim::kCudaSuccess; }
int cudaFuncSetSharedMemConfig(const void*, int) { return ptxsim::kCudaSuccess; }

int cudaFuncGetAttributes(FunctionAttributes* out, const void* host) {
    return about(host, [&](const HostFunction& f, const Program& program) { *out = attributes_of(f, program); });
}
int cudaFuncGetName(const char** name, const void* host) {
    HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    *name = f->name.c_str();
    return ptxsim::kCudaSuccess;
}
int cudaFuncGetParamInfo(const void* host, std::size_t index, std::size_t* offset, std::size_t* size) {
    bool found = false;
    int code = about(host, [&](const HostFunction&, const Program& program) {
        found = index < program.params.size();
        if (!found) return;
        *offset = program.params[index].offset;
        if (size) *size = program.params[index].size;
    });
    return code ? code : found ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidValue);
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host, int threads,
                                                           std::size_t shared, unsigned) {
    if (threads <= 0) return runtime().fail(ptxsim::kCudaInvalidValue);
    return about(host, [&](const HostFunction& f, const Program& program) {
        *blocks = static_cast<int>(resident_blocks(f, program, static_cast<u32>(threads), shared));
    });
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host, int threads, std::size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, shared, 0);
}
// The most dynamic shared memory with which `blocks` blocks still fit an SM.
int cudaOccupancyAvailableDynamicSMemPerBlock(std::size_t* bytes, const void* host, int blocks, int threads) {
    if (threads <= 0 || blocks <= 0) return runtime().fail(ptxsim::kCudaInvalidValue);
    bool fit = false;
    int code = about(host, [&](const HostFunction& f, const Program& program) {
        const DeviceProfile& p = *runtime().device().profile;
        fit = resident_blocks(f, program, static_cast<u32>(threads), 0) >= static_cast<u32>(blocks);
        u32 share =
            p.shared_per_sm / static_cast<u32>(blocks) / p.shared_unit() * p.shared_unit() - p.reserved_shared();
        if (fit) *bytes = std::min(share, p.shared_per_block_optin) - program.static_shared;
    });
    return code ? code : fit ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidValue);
}

}  // extern "C"
