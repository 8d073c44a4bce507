// Memory that host code asks for: device, pinned, managed and registered memory, all of it in one address space.
#include <cstring>

#include "runtime.h"

using ptxsim::MemoryKind;
using ptxsim::Runtime;
using ptxsim::u64;

namespace {

Runtime& runtime() { return Runtime::instance(); }

constexpr std::size_t kPitchAlignment = 512;

int allocate(void** out, std::size_t bytes, MemoryKind kind, const char* call) {
    if (!out) return runtime().fail(ptxsim::kCudaInvalidValue);
    *out = nullptr;
    if (bytes == 0) return ptxsim::kCudaSuccess;
    return runtime().guarded([&] { *out = runtime().allocate(bytes, kind, call); });
}

int release(void* pointer, MemoryKind kind) {
    return !pointer || runtime().release(pointer, kind) ? ptxsim::kCudaSuccess
                                                        : runtime().fail(ptxsim::kCudaInvalidValue);
}

// cudaPointerAttributes
struct PointerAttributes {
    int type, device;
    const void *device_pointer, *host_pointer;
    long reserved[8];
};

bool on_device(const void* pointer) {
    auto table = ptxsim::MemoryMap::instance().table();
    ptxsim::Allocation* a = ptxsim::find_allocation(*table, reinterpret_cast<u64>(pointer));
    return a && a->contains(reinterpret_cast<u64>(pointer), 1);
}

}  // namespace

extern "C" {

int cudaMalloc(void** out, std::size_t bytes) { return allocate(out, bytes, MemoryKind::Device, "cudaMalloc"); }
int cudaMallocAsync(void** out, std::size_t bytes, void*) {
    return allocate(out, bytes, MemoryKind::Device, "cudaMallocAsync");
}
int cudaMallocPitch(void** out, std::size_t* pitch, std::size_t width, std::size_t height) {
    if (!pitch) return runtime().fail(ptxsim::kCudaInvalidValue);
    *pitch = (width + kPitchAlignment - 1) / kPitchAlignment * kPitchAlignment;
    return allocate(out, *pitch * height, MemoryKind::Device, "cudaMallocPitch");
}
int cudaMallocManaged(void** out, std::size_t bytes, unsigned) {
    return allocate(out, bytes, MemoryKind::Managed, "cudaMallocManaged");
}
int cudaFree(void* p) {
    return release(p, runtime().owner_of(p).kind == MemoryKind::Managed ? MemoryKind::Managed : MemoryKind::Device);
}
int cudaFreeAsync(void* p, void*) { return release(p, MemoryKind::Device); }

int cudaMallocHost(void** out, std::size_t bytes) { return allocate(out, bytes, MemoryKind::Host, "cudaMallocHost"); }
int cudaHostAlloc(void** out, std::size_t bytes, unsigned) {
    return allocate(out, bytes, MemoryKind::Host, "cudaHostAlloc");
}
int cudaFreeHost(void* p) { return release(p, MemoryKind::Host); }
int cudaHostRegister(void* p, std::size_t bytes, unsigned) {
    if (!p || bytes == 0) return runtime().fail(ptxsim::kCudaInvalidValue);
    if (on_device(p)) return runtime().fail(ptxsim::kCudaHostMemoryAlreadyRegistered);
    return runtime().guarded([&] { runtime().register_host(p, bytes); });
}
int cudaHostUnregister(void* p) {
    return runtime().release(p, MemoryKind::RegisteredHost) ? ptxsim::kCudaSuccess
                                                            : runtime().fail(ptxsim::kCudaHostMemoryNotRegistered);
}
int cudaHostGetDevicePointer(void** out, void* p, unsigned) {
    if (!on_device(p)) return runtime().fail(ptxsim::kCudaInvalidValue);
    *out = p;
    return ptxsim::kCudaSuccess;
}
int cudaHostGetFlags(unsigned* flags, void* p) {
    MemoryKind kind = runtime().owner_of(p).kind;
    if (kind != MemoryKind::Host && kind != MemoryKind::RegisteredHost)
        return runtime().fail(ptxsim::kCudaInvalidValue);
    *flags = 2;  // cudaHostAllocMapped, as all of it is
    return ptxsim::kCudaSuccess;
}

int cudaPointerGetAttributes(PointerAttributes* out, const void* p) {
    MemoryKind kind = runtime().owner_of(p).kind;
    if (kind == MemoryKind::RegisteredHost) kind = MemoryKind::Host;
    if (kind == MemoryKind::Unregistered && on_device(p)) kind = MemoryKind::Device;  // a tensor of the test's
    bool known = kind != MemoryKind::Unregistered;
    *out = PointerAttributes{};
    out->type = static_cast<int>(kind);
    out->device = known ? 0 : -2;  // cudaInvalidDeviceId
    out->device_pointer = known ? p : nullptr;
    out->host_pointer = kind == MemoryKind::Device ? nullptr : p;
    return ptxsim::kCudaSuccess;
}
int cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    return runtime().guarded([&] {
        u64 used = runtime().allocated_bytes();
        *total = runtime().device().profile->global_bytes;
        *free = *total > used ? *total - used : 0;
    });
}

// Advice about managed memory, which lies in one place here. The location is a cudaMemLocation, passed in a register.
int cudaMemAdvise(const void*, std::size_t, int, u64) { return ptxsim::kCudaSuccess; }
int cudaMemPrefetchAsync(const void*, std::size_t, u64, unsigned, void*) { return ptxsim::kCudaSuccess; }

}  // extern "C"
