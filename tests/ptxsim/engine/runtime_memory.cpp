// Device memory, streams, events and queries. Every call completes before it returns: a stream is a formality.
#include <chrono>
#include <cstdlib>

#include "runtime.h"

using ptxsim::Runtime;
using ptxsim::u64;

namespace {

Runtime& runtime() { return Runtime::instance(); }
u64 address(const void* p) { return reinterpret_cast<u64>(p); }

int copy(void* to, const void* from, std::size_t bytes) {
    std::memmove(to, from, bytes);
    runtime().mark_defined(address(to), bytes);
    return ptxsim::kCudaSuccess;
}

int fill(void* to, int value, std::size_t bytes) {
    std::memset(to, value, bytes);
    runtime().mark_defined(address(to), bytes);
    return ptxsim::kCudaSuccess;
}

int allocate(void** out, std::size_t bytes) {
    return runtime().guarded([&] { *out = runtime().allocate(bytes); });
}

int release(void* pointer) {
    return runtime().release(pointer) ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidValue);
}

int attribute_of(const ptxsim::DeviceProfile& p, int attribute, int* value) {
    // clang-format off
    switch (attribute) {
        case 1: *value = 1024; return 0;                                   // MaxThreadsPerBlock
        case 2: case 3: *value = 1024; return 0;                           // MaxBlockDimX, Y
        case 4: *value = 64; return 0;                                     // MaxBlockDimZ
        case 5: *value = 2147483647; return 0;                             // MaxGridDimX
        case 6: case 7: *value = 65535; return 0;                          // MaxGridDimY, Z
        case 8: *value = static_cast<int>(p.shared_per_block); return 0;
        case 9: *value = 65536; return 0;                                  // TotalConstantMemory
        case 10: *value = 32; return 0;                                    // WarpSize
        case 12: *value = static_cast<int>(p.registers_per_block); return 0;
        case 13: *value = 1'410'000; return 0;                             // ClockRate, kHz
        case 16: *value = static_cast<int>(p.sm_count); return 0;
        case 31: *value = 1; return 0;                                     // ConcurrentKernels
        case 38: *value = 40 << 20; return 0;                              // L2CacheSize
        case 39: *value = static_cast<int>(p.max_threads_per_sm); return 0;
        case 75: *value = p.major; return 0;
        case 76: *value = p.minor; return 0;
        case 81: *value = static_cast<int>(p.shared_per_sm); return 0;
        case 82: *value = static_cast<int>(p.registers_per_block); return 0;
        case 95: *value = 1; return 0;                                     // CooperativeLaunch
        case 97: *value = static_cast<int>(p.shared_per_block_optin); return 0;
        case 106: *value = static_cast<int>(p.max_blocks_per_sm); return 0;
        case 111: *value = 1024; return 0;                                 // ReservedSharedMemoryPerBlock
        case 115: *value = 1; return 0;                                    // MemoryPoolsSupported
    }
    // clang-format on
    *value = 0;
    return 0;
}

struct Event { std::chrono::steady_clock::time_point time; };

}  // namespace

extern "C" {

int cudaMalloc(void** out, std::size_t bytes) { return allocate(out, bytes); }
int cudaMallocAsync(void** out, std::size_t bytes, void*) { return allocate(out, bytes); }
int cudaMallocManaged(void** out, std::size_t bytes, unsigned) { return allocate(out, bytes); }
int cudaFree(void* p) { return release(p); }
int cudaFreeAsync(void* p, void*) { return release(p); }
int cudaMallocHost(void** out, std::size_t bytes) {
    return (*out = std::malloc(bytes)) ? 0 : runtime().fail(ptxsim::kCudaMemoryAllocation);
}
int cudaHostAlloc(void** out, std::size_t bytes, unsigned) { return cudaMallocHost(out, bytes); }
int cudaFreeHost(void* p) {
    std::free(p);
    return 0;
}

int cudaMemcpy(void* to, const void* from, std::size_t bytes, int) { return copy(to, from, bytes); }
int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, void*) { return copy(to, from, bytes); }
int cudaMemset(void* to, int value, std::size_t bytes) { return fill(to, value, bytes); }
int cudaMemsetAsync(void* to, int value, std::size_t bytes, void*) { return fill(to, value, bytes); }
int cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height, void*) {
    for (std::size_t row = 0; row < height; ++row) fill(static_cast<char*>(to) + row * pitch, value, width);
    return 0;
}

int cudaGetSymbolAddress(void** out, const void* symbol) {
    u64 found = 0;
    int code = runtime().guarded([&] { found = runtime().variable_address(symbol, nullptr); });
    *out = reinterpret_cast<void*>(found);
    return code ? code : found ? 0 : runtime().fail(ptxsim::kCudaInvalidSymbol);
}
int cudaGetSymbolSize(std::size_t* bytes, const void* symbol) {
    u64 size = 0, found = 0;
    int code = runtime().guarded([&] { found = runtime().variable_address(symbol, &size); });
    *bytes = size;
    return code ? code : found ? 0 : runtime().fail(ptxsim::kCudaInvalidSymbol);
}
int cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t bytes, std::size_t offset, int) {
    void* to = nullptr;
    int code = cudaGetSymbolAddress(&to, symbol);
    return code ? code : copy(static_cast<char*>(to) + offset, from, bytes);
}
int cudaMemcpyToSymbolAsync(const void* symbol, const void* from, std::size_t bytes, std::size_t offset, int kind,
                            void*) {
    return cudaMemcpyToSymbol(symbol, from, bytes, offset, kind);
}
int cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t bytes, std::size_t offset, int) {
    void* from = nullptr;
    int code = cudaGetSymbolAddress(&from, symbol);
    return code ? code : copy(to, static_cast<char*>(from) + offset, bytes);
}

int cudaGetLastError() { return runtime().take_last_error(); }
int cudaPeekAtLastError() { return runtime().peek_last_error(); }
const char* cudaGetErrorString(int code) { return ptxsim::cuda_error_text(code); }
const char* cudaGetErrorName(int code) { return ptxsim::cuda_error_name(code); }

int cudaGetDevice(int* device) {
    *device = 0;
    return 0;
}
int cudaSetDevice(int device) { return device == 0 ? 0 : runtime().fail(101); }
int cudaGetDeviceCount(int* count) {
    *count = runtime().has_device() ? 1 : 0;
    return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
    return runtime().guarded([&] { attribute_of(*runtime().device().profile, attribute, value); });
}
int cudaDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
int cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

int cudaDeviceSynchronize() { return runtime().peek_last_error(); }
int cudaDeviceReset() { return 0; }
int cudaStreamSynchronize(void*) { return runtime().peek_last_error(); }
int cudaStreamQuery(void*) { return 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamIsCapturing(void*, int* status) {
    *status = 0;
    return 0;
}
int cudaStreamCreate(void** stream) {
    *stream = nullptr;
    return 0;
}
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamCreateWithPriority(void** stream, unsigned, int) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void*) { return 0; }

int cudaEventCreate(void** event) {
    *event = new Event;
    return 0;
}
int cudaEventCreateWithFlags(void** event, unsigned) { return cudaEventCreate(event); }
int cudaEventRecord(void* event, void*) {
    static_cast<Event*>(event)->time = std::chrono::steady_clock::now();
    return 0;
}
int cudaEventSynchronize(void*) { return 0; }
int cudaEventQuery(void*) { return 0; }
int cudaEventElapsedTime(float* ms, void* from, void* to) {
    *ms = std::chrono::duration<float, std::milli>(static_cast<Event*>(to)->time - static_cast<Event*>(from)->time)
              .count();
    return 0;
}
int cudaEventElapsedTime_v2(float* ms, void* from, void* to) { return cudaEventElapsedTime(ms, from, to); }
int cudaEventDestroy(void* event) {
    delete static_cast<Event*>(event);
    return 0;
}

}  // extern "C"
