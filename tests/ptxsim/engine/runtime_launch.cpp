// What nvcc's host code calls: registration of binaries and kernels, the <<<>>> configuration, launches.
#include <algorithm>

#include "runtime.h"

using ptxsim::Runtime;
using ptxsim::u32;
using ptxsim::u64;

namespace {

struct Dim3 { u32 x, y, z; };

// cudaLaunchAttribute
struct LaunchAttribute {
    int id;
    unsigned padding, value[16];
};
static_assert(sizeof(LaunchAttribute) == 72, "cudaLaunchAttribute of CUDA 13");

// cudaLaunchConfig_t
struct LaunchConfigC {
    Dim3 grid, block;
    std::size_t shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};

// cudaLaunchAttributeID. The others are hints of priority and caching, which change no result.
enum LaunchAttributeId : int {
    kCooperative = 2,
    kClusterDimension = 4,
    kProgrammaticSerialization = 6,
    kProgrammaticEvent = 7,
    kPreferredClusterDimension = 11,
    kCompletionEvent = 12,
    kDeviceUpdatableNode = 13,
};

// Why an attribute is refused; null if the launch can do with it or without it.
const char* refused_attribute(const LaunchAttribute& a) {
    bool one_block = a.value[0] * a.value[1] * a.value[2] <= 1;
    switch (a.id) {
        case kPreferredClusterDimension: return one_block ? nullptr : "cudaLaunchAttributePreferredClusterDimension";
        case kProgrammaticEvent: return "cudaLaunchAttributeProgrammaticEvent";
        case kCompletionEvent: return "cudaLaunchAttributeLaunchCompletionEvent";
        case kDeviceUpdatableNode: return "cudaLaunchAttributeDeviceUpdatableKernelNode";
    }
    return nullptr;
}

Runtime& runtime() { return Runtime::instance(); }

int launch(const void* function, Dim3 grid, Dim3 block, void** args, std::size_t shared,
           const ptxsim::LaunchOptions& options) {
    return runtime().guarded([&] {
        u32 g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
        runtime().launch(function, g, b, args, shared, options);
    });
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* data) { return reinterpret_cast<void**>(runtime().add_binary(data)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** handle) { runtime().remove_binary(reinterpret_cast<ptxsim::FatBinary*>(handle)); }
// Host code calls it before it first touches a __managed__ variable, until it succeeds.
char __cudaInitModule(void** handle) {
    auto* binary = reinterpret_cast<ptxsim::FatBinary*>(handle);
    return runtime().guarded([&] { runtime().place_managed(binary); }) == ptxsim::kCudaSuccess;
}

void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
    runtime().add_function(reinterpret_cast<ptxsim::FatBinary*>(handle), host, name);
}
void __cudaRegisterVar(void** handle, char* host, char*, const char* name, int, std::size_t, int, int) {
    runtime().add_variable(reinterpret_cast<ptxsim::FatBinary*>(handle), host, name);
}
void __cudaRegisterManagedVar(void** handle, void** host, char*, const char* name, int, std::size_t, int, int) {
    runtime().add_variable(reinterpret_cast<ptxsim::FatBinary*>(handle), host, name, host);
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
int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** args, std::size_t shared, void* stream) {
    ptxsim::LaunchOptions options;
    options.stream = stream;
    return launch(kernel, grid, block, args, shared, options);
}
int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** args, std::size_t shared, void* stream) {
    return __cudaLaunchKernel(function, grid, block, args, shared, stream);
}
int cudaLaunchCooperativeKernel(const void* function, Dim3 grid, Dim3 block, void** args, std::size_t shared,
                                void* stream) {
    ptxsim::LaunchOptions options;
    options.stream = stream;
    options.cooperative = true;
    return launch(function, grid, block, args, shared, options);
}
int cudaLaunchKernelExC(const LaunchConfigC* config, const void* function, void** args) {
    ptxsim::LaunchOptions options;
    options.stream = config->stream;
    for (unsigned i = 0; i < config->attribute_count; ++i) {
        const LaunchAttribute& a = config->attributes[i];
        if (const char* name = refused_attribute(a))
            return runtime().refuse(std::string("cudaLaunchKernelExC with ") + name);
        options.cooperative |= a.id == kCooperative && a.value[0];
        options.programmatic |= a.id == kProgrammaticSerialization && a.value[0];
        if (a.id == kClusterDimension) std::copy(a.value, a.value + 3, options.cluster);
    }
    return launch(function, config->grid, config->block, args, config->shared, options);
}

// How many clusters of the launch the device holds at a time, if CTAs could be placed anywhere.
int cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const LaunchConfigC* config) {
    ptxsim::HostFunction* f = runtime().function(function);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    return runtime().guarded([&] {
        const ptxsim::DeviceProfile& p = *runtime().device().profile;
        const ptxsim::Program& program = *runtime().program(*f);
        u32 shape[3] = {1, 1, 1};
        for (unsigned i = 0; i < config->attribute_count; ++i)
            if (config->attributes[i].id == kClusterDimension)
                std::copy(config->attributes[i].value, config->attributes[i].value + 3, shape);
        u32 ctas = resident_ctas(program, p, config->block.x * config->block.y * config->block.z,
                                 program.static_shared + config->shared);
        *clusters = static_cast<int>(p.sm_count * ctas / (shape[0] * shape[1] * shape[2]));
    });
}
int cudaOccupancyMaxPotentialClusterSize(int* size, const void* function, const LaunchConfigC*) {
    ptxsim::HostFunction* f = runtime().function(function);
    if (!f) return runtime().fail(ptxsim::kCudaInvalidDeviceFunction);
    *size = f->large_cluster ? 16 : 8;
    return ptxsim::kCudaSuccess;
}

}  // extern "C"
