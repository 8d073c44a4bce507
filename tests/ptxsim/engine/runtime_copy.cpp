// Copies, fills and module variables. Every call has completed when it returns. The address tells whether memory is the
// host's or the device's: what nobody registered or allocated is the host's.
#include <cstring>

#include "runtime.h"

using ptxsim::Allocation;
using ptxsim::AllocationTable;
using ptxsim::Runtime;
using ptxsim::u64;
using ptxsim::u8;

namespace {

Runtime& runtime() { return Runtime::instance(); }

constexpr int kLastMemcpyKind = 4;  // cudaMemcpyDefault

[[noreturn]] void out_of_bounds(const std::string& what, u64 address, const Allocation& a) {
    ptxsim::SimError error(ptxsim::ErrorKind::OutOfBounds, what);
    error.placed = true;
    throw error.at_address(address).in_tensor(a.name);
}

// The device memory that holds [pointer, pointer + bytes); null for the host's.
Allocation* device_memory(const AllocationTable& table, const void* pointer, u64 bytes, bool write, const char* call) {
    u64 address = reinterpret_cast<u64>(pointer);
    Allocation* a = ptxsim::find_allocation(table, address);
    if (!a || !a->contains(address, 1)) return nullptr;
    std::string access = std::string(call) + (write ? " writes " : " reads ") + std::to_string(bytes) + " bytes at " +
                         ptxsim::hex(address);
    if (!a->contains(address, bytes))
        out_of_bounds(access + ", byte " + std::to_string(address - a->base) + " of " + a->name + ", which has " +
                          std::to_string(a->size) + ".",
                      address, *a);
    if (write && !a->writable) out_of_bounds(access + " of " + a->name + ", which is read-only.", address, *a);
    return a;
}

u8* definedness(const Allocation* a, const void* pointer) {
    return a && a->defined ? a->defined + (reinterpret_cast<u64>(pointer) - a->base) : nullptr;
}

// What is copied keeps its definedness; the host's memory counts as defined.
void copy_row(const AllocationTable& table, void* to, const void* from, u64 bytes, const char* call) {
    const Allocation* source = device_memory(table, from, bytes, false, call);
    const Allocation* target = device_memory(table, to, bytes, true, call);
    std::memmove(to, from, bytes);
    u8 *known = definedness(target, to), *was_known = definedness(source, from);
    if (known && was_known) std::memmove(known, was_known, bytes);
    else if (known) std::memset(known, 1, bytes);
}

struct Pitched {
    const void* data;
    std::size_t pitch;
};

int copy(void* to, std::size_t to_pitch, Pitched from, std::size_t width, std::size_t height, int kind,
         const char* call) {
    if (runtime().capture()) return runtime().refuse(std::string(call) + " while a stream captures");
    runtime().synchronise();  // a copy in a stream is ordered after the grids before it
    if (kind < 0 || kind > kLastMemcpyKind) return runtime().fail(ptxsim::kCudaInvalidMemcpyDirection);
    if (height > 1 && (width > to_pitch || width > from.pitch)) return runtime().fail(ptxsim::kCudaInvalidPitchValue);
    if (width == 0 || height == 0) return ptxsim::kCudaSuccess;
    if (!to || !from.data) return runtime().fail(ptxsim::kCudaInvalidValue);
    return runtime().guarded([&] {
        auto table = ptxsim::MemoryMap::instance().table();
        for (std::size_t row = 0; row < height; ++row)
            copy_row(*table, static_cast<char*>(to) + row * to_pitch,
                     static_cast<const char*>(from.data) + row * from.pitch, width, call);
    });
}

int copy(void* to, const void* from, std::size_t bytes, int kind, const char* call) {
    return copy(to, bytes, {from, bytes}, bytes, 1, kind, call);
}

int fill(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height, const char* call) {
    if (runtime().capture()) return runtime().refuse(std::string(call) + " while a stream captures");
    runtime().synchronise();
    if (height > 1 && width > pitch) return runtime().fail(ptxsim::kCudaInvalidPitchValue);
    if (width == 0 || height == 0) return ptxsim::kCudaSuccess;
    if (!to) return runtime().fail(ptxsim::kCudaInvalidValue);
    return runtime().guarded([&] {
        auto table = ptxsim::MemoryMap::instance().table();
        for (std::size_t row = 0; row < height; ++row) {
            char* at = static_cast<char*>(to) + row * pitch;
            u8* known = definedness(device_memory(*table, at, width, true, call), at);
            std::memset(at, value, width);
            if (known) std::memset(known, 1, width);
        }
    });
}

int find_symbol(const void* symbol, void** address, u64* size) {
    u64 found = 0;
    int code = runtime().guarded([&] { found = runtime().variable_address(symbol, size); });
    *address = reinterpret_cast<void*>(found);
    return code ? code : found ? ptxsim::kCudaSuccess : runtime().fail(ptxsim::kCudaInvalidSymbol);
}

// The address of byte `offset` of a module variable that has `bytes` more.
int symbol_range(const void* symbol, std::size_t bytes, std::size_t offset, void** at) {
    u64 size = 0;
    if (int code = find_symbol(symbol, at, &size)) return code;
    if (offset > size || bytes > size - offset) return runtime().fail(ptxsim::kCudaInvalidValue);
    *at = static_cast<char*>(*at) + offset;
    return ptxsim::kCudaSuccess;
}

}  // namespace

extern "C" {

int cudaMemcpy(void* to, const void* from, std::size_t bytes, int kind) {
    return copy(to, from, bytes, kind, "cudaMemcpy");
}
int cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int kind, void*) {
    return copy(to, from, bytes, kind, "cudaMemcpyAsync");
}
int cudaMemcpyPeer(void* to, int, const void* from, int, std::size_t bytes) {
    return copy(to, from, bytes, kLastMemcpyKind, "cudaMemcpyPeer");
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, std::size_t bytes, void*) {
    return copy(to, from, bytes, kLastMemcpyKind, "cudaMemcpyPeerAsync");
}
int cudaMemcpy2D(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                 std::size_t height, int kind) {
    return copy(to, to_pitch, {from, from_pitch}, width, height, kind, "cudaMemcpy2D");
}
int cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                      std::size_t height, int kind, void*) {
    return copy(to, to_pitch, {from, from_pitch}, width, height, kind, "cudaMemcpy2DAsync");
}

int cudaMemset(void* to, int value, std::size_t bytes) { return fill(to, bytes, value, bytes, 1, "cudaMemset"); }
int cudaMemsetAsync(void* to, int value, std::size_t bytes, void*) {
    return fill(to, bytes, value, bytes, 1, "cudaMemsetAsync");
}
int cudaMemset2D(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height) {
    return fill(to, pitch, value, width, height, "cudaMemset2D");
}
int cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height, void*) {
    return fill(to, pitch, value, width, height, "cudaMemset2DAsync");
}

int cudaGetSymbolAddress(void** out, const void* symbol) { return find_symbol(symbol, out, nullptr); }
int cudaGetSymbolSize(std::size_t* bytes, const void* symbol) {
    void* address = nullptr;
    u64 size = 0;
    int code = find_symbol(symbol, &address, &size);
    *bytes = size;
    return code;
}
int cudaMemcpyToSymbol(const void* symbol, const void* from, std::size_t bytes, std::size_t offset, int kind) {
    void* to = nullptr;
    int code = symbol_range(symbol, bytes, offset, &to);
    return code ? code : copy(to, from, bytes, kind, "cudaMemcpyToSymbol");
}
int cudaMemcpyToSymbolAsync(const void* symbol, const void* from, std::size_t bytes, std::size_t offset, int kind,
                            void*) {
    return cudaMemcpyToSymbol(symbol, from, bytes, offset, kind);
}
int cudaMemcpyFromSymbol(void* to, const void* symbol, std::size_t bytes, std::size_t offset, int kind) {
    void* from = nullptr;
    int code = symbol_range(symbol, bytes, offset, &from);
    return code ? code : copy(to, from, bytes, kind, "cudaMemcpyFromSymbol");
}
int cudaMemcpyFromSymbolAsync(void* to, const void* symbol, std::size_t bytes, std::size_t offset, int kind, void*) {
    return cudaMemcpyFromSymbol(to, symbol, bytes, offset, kind);
}

}  // extern "C"
