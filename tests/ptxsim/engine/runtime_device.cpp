// The device as host code asks for it: attributes, properties, limits, versions. Everything comes from the profile.
#include <cstdio>

#include "runtime.h"

using ptxsim::DeviceProfile;
using ptxsim::Runtime;
using ptxsim::u32;
using ptxsim::u64;

namespace {

Runtime& runtime() { return Runtime::instance(); }

constexpr int kCudaVersion = 13000;

// cudaDeviceAttr, those that are not 0 everywhere.
enum Attribute : int {
    kMaxThreadsPerBlock = 1,
    kMaxBlockDimX,
    kMaxBlockDimY,
    kMaxBlockDimZ,
    kMaxGridDimX,
    kMaxGridDimY,
    kMaxGridDimZ,
    kSharedPerBlock,
    kConstantMemory,
    kWarpSize,
    kMaxPitch,
    kRegistersPerBlock,
    kClockRate,
    kTextureAlignment,
    kGpuOverlap,
    kSmCount,
    kCanMapHostMemory = 19,
    kSurfaceAlignment = 30,
    kConcurrentKernels,
    kMemoryClockRate = 36,
    kMemoryBusWidth,
    kL2CacheSize,
    kThreadsPerSm,
    kAsyncEngines,
    kUnifiedAddressing,
    kTexturePitchAlignment = 51,
    kMajor = 75,
    kMinor,
    kStreamPriorities = 78,
    kGlobalL1Cache,
    kLocalL1Cache,
    kSharedPerSm,
    kRegistersPerSm,
    kManagedMemory,
    kDoubleRatio = 87,
    kConcurrentManagedAccess = 89,
    kComputePreemption,
    kHostPointerOfRegistered,
    kCooperativeLaunch = 95,
    kSharedPerBlockOptin = 97,
    kHostRegister = 99,
    kBlocksPerSm = 106,
    kReservedShared = 111,
    kMemoryPools = 115,
    kClusterLaunch = 120,
    kMemSyncDomains = 126,
    kNumaId = 131,
    kHostNumaId = 134,
};

// What the stand-in refuses it does not have either: textures, surfaces and arrays, persistence in L2, IPC,
// RDMA. A name of CUDA 13 that is not in the switch is 0 for that reason, or because no board is there (PCI, ECC).
bool has_name(int attribute) {
    bool gap = attribute == 44 || attribute == 96 || (attribute >= 92 && attribute <= 94) ||
               (attribute >= 102 && attribute <= 105) || attribute == 107 || attribute == 110 ||
               (attribute >= 122 && attribute <= 124) || (attribute >= 127 && attribute <= 129) || attribute == 132 ||
               attribute == 136 || attribute == 137 || attribute == 141 || attribute == 145 || attribute == 146;
    return attribute >= kMaxThreadsPerBlock && attribute <= 147 && !gap;
}

u64 attribute_of(const DeviceProfile& p, int attribute) {
    switch (attribute) {
        case kMaxThreadsPerBlock:
        case kMaxBlockDimX:
        case kMaxBlockDimY: return 1024;
        case kMaxBlockDimZ: return 64;
        case kMaxGridDimX:
        case kMaxPitch: return 0x7fffffff;
        case kMaxGridDimY:
        case kMaxGridDimZ: return 65535;
        case kSharedPerBlock: return p.shared_per_block;
        case kConstantMemory: return 65536;
        case kWarpSize: return 32;
        case kRegistersPerBlock:
        case kRegistersPerSm: return p.registers_per_block;
        case kClockRate: return p.clock_khz;
        case kTextureAlignment:
        case kSurfaceAlignment: return 512;
        case kTexturePitchAlignment: return 32;
        case kSmCount: return p.sm_count;
        case kMemoryClockRate: return p.memory_clock_khz;
        case kMemoryBusWidth: return p.memory_bus_bits;
        case kL2CacheSize: return p.l2_bytes;
        case kThreadsPerSm: return p.max_threads_per_sm;
        case kMajor: return static_cast<u64>(p.major);
        case kMinor: return static_cast<u64>(p.minor);
        case kSharedPerSm: return p.shared_per_sm;
        case kDoubleRatio: return p.double_ratio;
        case kSharedPerBlockOptin: return p.shared_per_block_optin;
        case kBlocksPerSm: return p.max_blocks_per_sm;
        case kClusterLaunch: return p.major >= 9;
        case kReservedShared: return p.reserved_shared();
        case kNumaId:
        case kHostNumaId: return static_cast<u64>(-1);
        case kGpuOverlap:
        case kCanMapHostMemory:
        case kConcurrentKernels:
        case kAsyncEngines:
        case kUnifiedAddressing:
        case kStreamPriorities:
        case kGlobalL1Cache:
        case kLocalL1Cache:
        case kManagedMemory:
        case kConcurrentManagedAccess:
        case kComputePreemption:
        case kHostPointerOfRegistered:
        case kCooperativeLaunch:
        case kHostRegister:
        case kMemoryPools:
        case kMemSyncDomains: return 1;
    }
    return 0;
}

// cudaDeviceProp of CUDA 13, field by field: tests/cases/runtime.cu reads it through the toolkit's own header.
struct DeviceProperties {
    char name[256], uuid[16], luid[8];
    unsigned luid_node_mask;
    std::size_t global_bytes, shared_per_block;
    int registers_per_block, warp_size;
    std::size_t max_pitch;
    int max_threads_per_block, max_block[3], max_grid[3];
    std::size_t constant_bytes;
    int major, minor;
    std::size_t texture_alignment, texture_pitch_alignment;
    int sm_count, integrated, can_map_host_memory;
    int textures[25], surfaces[14];
    std::size_t surface_alignment;
    int concurrent_kernels, ecc, pci_bus, pci_device, pci_domain, tcc_driver, async_engines, unified_addressing;
    int memory_bus_width, l2_bytes, persisting_l2_bytes, threads_per_sm, stream_priorities, global_l1, local_l1;
    std::size_t shared_per_sm;
    int registers_per_sm, managed_memory, multi_gpu_board, multi_gpu_group, host_native_atomics, pageable_access;
    int concurrent_managed, compute_preemption, host_pointer_of_registered, cooperative_launch;
    std::size_t shared_per_block_optin;
    int pageable_by_host_tables, direct_managed_access, blocks_per_sm, access_policy_window;
    std::size_t reserved_shared;
    int host_register, sparse_arrays, host_register_read_only, timeline_semaphores, memory_pools, rdma;
    unsigned rdma_flush_options;
    int rdma_ordering;
    unsigned pool_handle_types;
    int deferred_arrays, ipc_events, cluster_launch, unified_function_pointers, numa_config, numa_id, mps;
    int host_numa_id;
    unsigned pci_device_id, pci_subsystem_id;
    int host_numa_ipc, reserved[56];
};
static_assert(sizeof(DeviceProperties) == 1008, "cudaDeviceProp of CUDA 13");

DeviceProperties properties_of(const DeviceProfile& p) {
    auto at = [&](int attribute) { return static_cast<int>(attribute_of(p, attribute)); };
    auto size = [&](int attribute) { return static_cast<std::size_t>(attribute_of(p, attribute)); };
    DeviceProperties out{};
    std::snprintf(out.name, sizeof out.name, "ptxsim %s", p.name);
    std::memcpy(out.uuid, "ptxsim", 6);
    out.global_bytes = p.global_bytes;
    out.shared_per_block = size(kSharedPerBlock);
    out.registers_per_block = at(kRegistersPerBlock);
    out.warp_size = at(kWarpSize);
    out.max_pitch = size(kMaxPitch);
    out.max_threads_per_block = at(kMaxThreadsPerBlock);
    for (int axis = 0; axis < 3; ++axis) {
        out.max_block[axis] = at(kMaxBlockDimX + axis);
        out.max_grid[axis] = at(kMaxGridDimX + axis);
    }
    out.constant_bytes = size(kConstantMemory);
    out.major = at(kMajor);
    out.minor = at(kMinor);
    out.texture_alignment = size(kTextureAlignment);
    out.texture_pitch_alignment = size(kTexturePitchAlignment);
    out.sm_count = at(kSmCount);
    out.can_map_host_memory = at(kCanMapHostMemory);
    out.surface_alignment = size(kSurfaceAlignment);
    out.concurrent_kernels = at(kConcurrentKernels);
    out.async_engines = at(kAsyncEngines);
    out.unified_addressing = at(kUnifiedAddressing);
    out.memory_bus_width = at(kMemoryBusWidth);
    out.l2_bytes = at(kL2CacheSize);
    out.threads_per_sm = at(kThreadsPerSm);
    out.stream_priorities = at(kStreamPriorities);
    out.global_l1 = at(kGlobalL1Cache);
    out.local_l1 = at(kLocalL1Cache);
    out.shared_per_sm = size(kSharedPerSm);
    out.registers_per_sm = at(kRegistersPerSm);
    out.managed_memory = at(kManagedMemory);
    out.concurrent_managed = at(kConcurrentManagedAccess);
    out.compute_preemption = at(kComputePreemption);
    out.host_pointer_of_registered = at(kHostPointerOfRegistered);
    out.cooperative_launch = at(kCooperativeLaunch);
    out.shared_per_block_optin = size(kSharedPerBlockOptin);
    out.blocks_per_sm = at(kBlocksPerSm);
    out.reserved_shared = size(kReservedShared);
    out.host_register = at(kHostRegister);
    out.memory_pools = at(kMemoryPools);
    out.cluster_launch = at(kClusterLaunch);
    out.numa_id = at(kNumaId);
    out.host_numa_id = at(kHostNumaId);
    return out;
}

// cudaLimit: the stack, printf's buffer and malloc's heap. Nothing here runs out of them; they read as they were set.
constexpr int kLimits = 3;
std::size_t limits[kLimits] = {1024, 1 << 20, 8 << 20};

}  // namespace

extern "C" {

int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 0) return runtime().fail(ptxsim::kCudaInvalidDevice);
    if (!value || !has_name(attribute)) return runtime().fail(ptxsim::kCudaInvalidValue);
    return runtime().guarded([&] { *value = static_cast<int>(attribute_of(*runtime().device().profile, attribute)); });
}
int cudaGetDeviceProperties(void* out, int device) {
    if (device != 0) return runtime().fail(ptxsim::kCudaInvalidDevice);
    return runtime().guarded([&] {
        DeviceProperties properties = properties_of(*runtime().device().profile);
        std::memcpy(out, &properties, sizeof properties);
    });
}

int cudaGetDevice(int* device) {
    *device = 0;
    return ptxsim::kCudaSuccess;
}
int cudaSetDevice(int device) {
    return device == 0 ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidDevice);
}
int cudaInitDevice(int device, unsigned, unsigned) { return cudaSetDevice(device); }
int cudaGetDeviceCount(int* count) {
    *count = runtime().has_device() ? 1 : 0;
    return ptxsim::kCudaSuccess;
}
int cudaSetDeviceFlags(unsigned) { return ptxsim::kCudaSuccess; }
int cudaGetDeviceFlags(unsigned* flags) {
    *flags = 0;
    return ptxsim::kCudaSuccess;
}
int cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 0;
    return ptxsim::kCudaSuccess;
}

int cudaDriverGetVersion(int* version) {
    *version = kCudaVersion;
    return ptxsim::kCudaSuccess;
}
int cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

int cudaDeviceSynchronize() {
    int code = runtime().synchronise();
    return code ? code : runtime().peek_last_error();
}
int cudaDeviceReset() { return ptxsim::kCudaSuccess; }
int cudaDeviceGetLimit(std::size_t* value, int limit) {
    if (limit < 0 || limit >= kLimits) return runtime().refuse("cudaDeviceGetLimit(" + std::to_string(limit) + ")");
    *value = limits[limit];
    return ptxsim::kCudaSuccess;
}
int cudaDeviceSetLimit(int limit, std::size_t value) {
    if (limit < 0 || limit >= kLimits) return runtime().refuse("cudaDeviceSetLimit(" + std::to_string(limit) + ")");
    limits[limit] = value;
    return ptxsim::kCudaSuccess;
}
// Preferences for caches and banks: nothing here depends on them.
int cudaDeviceSetCacheConfig(int) { return ptxsim::kCudaSuccess; }
int cudaDeviceGetCacheConfig(int* config) {
    *config = 0;
    return ptxsim::kCudaSuccess;
}
int cudaDeviceSetSharedMemConfig(int) { return ptxsim::kCudaSuccess; }
int cudaDeviceGetSharedMemConfig(int* config) {
    *config = 1;  // banks of four bytes
    return ptxsim::kCudaSuccess;
}
int cudaCtxResetPersistingL2Cache() { return ptxsim::kCudaSuccess; }
int cudaProfilerStart() { return ptxsim::kCudaSuccess; }
int cudaProfilerStop() { return ptxsim::kCudaSuccess; }

int cudaGetLastError() { return runtime().take_last_error(); }
int cudaPeekAtLastError() { return runtime().peek_last_error(); }
const char* cudaGetErrorString(int code) { return ptxsim::cuda_error_text(code); }
const char* cudaGetErrorName(int code) { return ptxsim::cuda_error_name(code); }

}  // extern "C"
