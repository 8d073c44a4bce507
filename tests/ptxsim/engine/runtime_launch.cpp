// What nvcc's host code calls: registration of binaries and kernels, the <<<>>> configuration, launches, attributes.
#include <algorithm>

#include "runtime.h"

using ptxsim::Runtime;
using ptxsim::u32;
using ptxsim::u64;

namespace {

struct Dim3 { u32 x, y, z; };

// cudaLaunchConfig_t
struct LaunchConfigC {
    Dim3 grid, block;
    std::size_t shared;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

Runtime& runtime() { return Runtime::instance(); }

int launch(const void* function, Dim3 grid, Dim3 block, void** args, std::size_t shared) {
    return runtime().guarded([&] {
        u32 g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
        runtime().launch(function, g, b, args, shared);
    });
}

constexpr int kMaxDynamicSharedAttribute = 8, kCarveoutAttribute = 9;

int set_dynamic_shared(const void* host, int value) {
    ptxsim::HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    if (!runtime().has_device()) return runtime().guarded([] { runtime().device(); });
    u32 limit = runtime().device().profile->shared_per_block_optin, fixed = 0;
    int code = runtime().guarded([&] { fixed = runtime().program(*f)->static_shared; });
    if (code) return code;
    if (value < 0 || static_cast<u32>(value) + fixed > limit) return runtime().fail(ptxsim::kCudaInvalidValue);
    f->dynamic_shared_limit = static_cast<u32>(value);
    return ptxsim::kCudaSuccess;
}

u32 resident_blocks(const ptxsim::Program& program, int threads, std::size_t shared) {
    const ptxsim::DeviceProfile& p = *runtime().device().profile;
    u32 warps = (static_cast<u32>(threads) + 31) / 32,
        per_warp = (static_cast<u32>(program.registers) * 32 + 255) / 256 * 256;
    u32 blocks = std::min(p.max_blocks_per_sm, p.max_threads_per_sm / std::max(warps * 32, 1u));
    if (per_warp) blocks = std::min(blocks, p.registers_per_block / std::max(per_warp * warps, 1u));
    u64 bytes = program.static_shared + shared + 1024;
    return static_cast<u32>(std::min<u64>(blocks, p.shared_per_sm / bytes));
}

// cudaFuncAttributes
struct FunctionAttributes {
    std::size_t shared, constant, local;
    int max_threads, registers, ptx_version, binary_version, cache_mode, max_dynamic_shared, carveout;
    int reserved[24];
};

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* data) { return reinterpret_cast<void**>(runtime().add_binary(data)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** handle) { runtime().remove_binary(reinterpret_cast<ptxsim::FatBinary*>(handle)); }
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
    runtime().add_function(reinterpret_cast<ptxsim::FatBinary*>(handle), host, name);
}
void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, std::size_t, int, int) {
    runtime().add_variable(reinterpret_cast<ptxsim::FatBinary*>(handle), host, name);
}
void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int, std::size_t, int, int) {
    runtime().add_variable(reinterpret_cast<ptxsim::FatBinary*>(handle), host, name);
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, std::size_t shared, void* stream) {
    Runtime::calls.push_back({{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, stream});
    return 0;
}
int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, std::size_t* shared, void* stream) {
    if (Runtime::calls.empty()) return runtime().fail(ptxsim::kCudaInvalidConfiguration);
    ptxsim::CallConfiguration c = Runtime::calls.back();
    Runtime::calls.pop_back();
    *grid = {c.grid[0], c.grid[1], c.grid[2]};
    *block = {c.block[0], c.block[1], c.block[2]};
    *shared = c.shared;
    *static_cast<void**>(stream) = c.stream;
    return ptxsim::kCudaSuccess;
}

int __cudaGetKernel(const void** kernel, const void* host) {
    *kernel = host;  // the handle is the host function itself
    return ptxsim::kCudaSuccess;
}
int cudaGetKernel(const void** kernel, const void* host) { return __cudaGetKernel(kernel, host); }
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** args, std::size_t shared, void*) {
    return launch(kernel, grid, block, args, shared);
}
int __cudaLaunchKernel_ptsz(const void* kernel, Dim3 grid, Dim3 block, void** args, std::size_t shared, void*) {
    return launch(kernel, grid, block, args, shared);
}
int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** args, std::size_t shared, void*) {
    return launch(function, grid, block, args, shared);
}
int cudaLaunchCooperativeKernel(const void* function, Dim3 grid, Dim3 block, void** args, std::size_t shared, void*) {
    return launch(function, grid, block, args, shared);
}
int cudaLaunchKernelExC(const LaunchConfigC* config, const void* function, void** args) {
    return launch(function, config->grid, config->block, args, config->shared);
}

int cudaFuncSetAttribute(const void* function, int attribute, int value) {
    if (attribute == kMaxDynamicSharedAttribute) return set_dynamic_shared(function, value);
    return attribute == kCarveoutAttribute ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidValue);
}
int cudaFuncSetCacheConfig(const void*, int) { return ptxsim::kCudaSuccess; }

int cudaFuncGetAttributes(FunctionAttributes* out, const void* host) {
    ptxsim::HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    return runtime().guarded([&] {
        auto program = runtime().program(*f);
        const ptxsim::DeviceProfile& p = *runtime().device().profile;
        *out = FunctionAttributes{};
        out->shared = program->static_shared;
        out->local = static_cast<std::size_t>(program->spill_bytes) + program->functions[0].local_bytes;
        out->max_threads = program->function->max_threads ? program->function->max_threads : 1024;
        out->registers = program->registers;
        out->ptx_version = out->binary_version = p.major * 10 + p.minor;
        out->max_dynamic_shared =
            static_cast<int>(std::max(f->dynamic_shared_limit, p.shared_per_block - program->static_shared));
    });
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* host, int threads,
                                                           std::size_t shared, unsigned) {
    ptxsim::HostFunction* f = runtime().function(host);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    return runtime().guarded(
        [&] { *blocks = static_cast<int>(resident_blocks(*runtime().program(*f), threads, shared)); });
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* host, int threads, std::size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, host, threads, shared, 0);
}

}  // extern "C"
