#include "memory_map.h"

#include <sys/mman.h>

#include <algorithm>

#include "error.h"

namespace ptxsim {

namespace {
constexpr u64 kPage = 4096;
u64 round_up(u64 value, u64 to) { return (value + to - 1) / to * to; }
u64 shadow_bytes(const Allocation& a) { return round_up((a.size / 4 + 2) * sizeof(u64), kPage); }

void* map_pages(u64 bytes, int protection) {
    void* p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        throw SimError(ErrorKind::LaunchLimit, "Cannot map " + std::to_string(bytes) + " bytes of device memory.");
    return p;
}
}  // namespace

Allocation::~Allocation() {
    if (defined) munmap(defined, round_up(size + 16, kPage));
    if (allowed) munmap(allowed, round_up(size + 16, kPage));
    if (shadow) munmap(shadow, shadow_bytes(*this));
    if (threads) munmap(threads, 2 * shadow_bytes(*this));
    if (mapping) munmap(mapping, mapping_bytes);
}

u64 Allocation::undefined_bytes() const {
    if (!defined) return 0;
    u64 count = 0;
    for (u64 i = 0; i < size; ++i) count += undefined(i);
    return count;
}

namespace {

// A strided view in its largest contiguous pieces.
struct Pieces {
    u64 bytes, count = 1;
    std::vector<u64> sizes, strides;

    Pieces(const std::vector<u64>& shape, const std::vector<u64>& steps, u64 item) : bytes(item) {
        std::vector<std::pair<u64, u64>> dims;
        for (size_t d = 0; d < shape.size(); ++d)
            if (shape[d] == 0 || (shape[d] > 1 && steps[d] > 0)) dims.emplace_back(steps[d], shape[d]);
        std::sort(dims.begin(), dims.end());
        for (const auto& [stride, size] : dims) {
            if (stride == bytes && sizes.empty() && size) {
                bytes *= size;
                continue;
            }
            strides.push_back(stride);
            sizes.push_back(size);
            count *= size;
        }
    }
};

}  // namespace

void Allocation::allow(u64 offset, const std::vector<u64>& shape, const std::vector<u64>& strides, u64 item,
                       bool is_defined) {
    u64 last = offset + item, elements = 1;
    for (size_t d = 0; d < shape.size(); ++d) {
        elements *= shape[d];
        if (shape[d]) last += (shape[d] - 1) * strides[d];
    }
    if (elements && last > size)
        throw SimError(ErrorKind::BadProgram, "A view of " + name + " ends at byte " + std::to_string(last) +
                                                  ", the memory has " + std::to_string(size) + ".");
    if (!allowed) allowed = static_cast<u8*>(map_pages(round_up(size + 16, kPage), PROT_READ | PROT_WRITE));
    if (!is_defined && !defined) {
        defined = static_cast<u8*>(map_pages(round_up(size + 16, kPage), PROT_READ | PROT_WRITE));
        std::memset(defined, 1, size);
    }
    Pieces pieces(shape, strides, item);
    std::vector<u64> index(pieces.sizes.size(), 0);
    for (u64 n = 0; n < pieces.count; ++n) {
        u64 at = offset;
        for (size_t d = 0; d < index.size(); ++d) at += index[d] * pieces.strides[d];
        std::memset(allowed + at, 1, pieces.bytes);
        if (!is_defined) {
            std::memset(defined + at, 0, pieces.bytes);
            std::memset(reinterpret_cast<void*>(base + at), 0xff, pieces.bytes);
        }
        for (size_t d = 0; d < index.size() && ++index[d] == pieces.sizes[d]; ++d) index[d] = 0;
    }
}

MemoryMap& MemoryMap::instance() {
    static MemoryMap* map = new MemoryMap;  // a library's own exit handlers free memory here
    return *map;
}

// The data end at the guard page as nearly as a 256-byte alignment of the base (that of cudaMalloc) allows.
AllocationPtr MemoryMap::create(u64 bytes, const std::string& name, bool poison, bool sparse) {
    auto allocation = std::make_shared<Allocation>();
    u64 body = round_up(std::max<u64>(bytes, 1), kPage);
    allocation->mapping_bytes = body + 2 * kPage;
    allocation->mapping = map_pages(allocation->mapping_bytes, PROT_NONE);
    u8* start = static_cast<u8*>(allocation->mapping) + kPage;
    mprotect(start, body, PROT_READ | PROT_WRITE);
    u64 tail = (body - bytes) / 256 * 256;
    allocation->base = reinterpret_cast<u64>(start) + tail;
    allocation->size = bytes;
    allocation->name = name;
    if (poison) {
        if (!sparse) std::memset(reinterpret_cast<void*>(allocation->base), 0xff, bytes);
        allocation->defined = static_cast<u8*>(map_pages(round_up(bytes + 16, kPage), PROT_READ | PROT_WRITE));
    }
    map_shadows(*allocation);
    insert(allocation);
    return allocation;
}

void MemoryMap::map_shadows(Allocation& a) {
    u64 bytes = shadow_bytes(a);
    a.shadow = static_cast<std::atomic<u64>*>(map_pages(bytes, PROT_READ | PROT_WRITE));
    if (a.writable) a.threads = static_cast<std::atomic<u64>*>(map_pages(2 * bytes, PROT_READ | PROT_WRITE));
}

// A byte has one owner: views that interleave are one registered range with gaps (Allocation::allow).
void MemoryMap::refuse_overlap(u64 address, u64 bytes, const std::string& name) const {
    std::shared_ptr<const AllocationTable> all = table();
    for (const AllocationPtr& a : *all) {
        if (a->base == address || a->base + a->size <= address || address + bytes <= a->base) continue;
        throw SimError(ErrorKind::BadProgram, "The memory of " + name + " [" + hex(address) + ", " +
                                                  hex(address + bytes) + ") overlaps that of " + a->name + " [" +
                                                  hex(a->base) + ", " + hex(a->base + a->size) +
                                                  "): register the whole of it once, and allow() its views.");
    }
}

AllocationPtr MemoryMap::adopt(u64 address, u64 bytes, const std::string& name, bool writable, bool defined) {
    refuse_overlap(address, bytes, name);
    auto allocation = std::make_shared<Allocation>();
    allocation->base = address;
    allocation->size = bytes;
    allocation->name = name;
    allocation->writable = writable;
    if (!defined) {
        std::memset(reinterpret_cast<void*>(address), 0xff, bytes);
        allocation->defined = static_cast<u8*>(map_pages(round_up(bytes + 16, kPage), PROT_READ | PROT_WRITE));
    }
    map_shadows(*allocation);
    insert(allocation);
    return allocation;
}

void MemoryMap::insert(AllocationPtr allocation) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto next = std::make_shared<AllocationTable>(*table_);
    auto at = std::lower_bound(next->begin(), next->end(), allocation->base,
                               [](const AllocationPtr& a, u64 b) { return a->base < b; });
    if (at != next->end() && (*at)->base == allocation->base) {
        *at = std::move(allocation);  // memory registered anew
    } else {
        next->insert(at, std::move(allocation));
    }
    table_ = next;
}

void MemoryMap::remove(u64 base) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto next = std::make_shared<AllocationTable>(*table_);
    next->erase(std::remove_if(next->begin(), next->end(), [&](const AllocationPtr& a) { return a->base == base; }),
                next->end());
    table_ = next;
}

std::shared_ptr<const AllocationTable> MemoryMap::table() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return table_;
}

void MemoryMap::clear_shadows() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& a : *table_) madvise(a->shadow, shadow_bytes(*a), MADV_DONTNEED);
}

Allocation* find_allocation(const AllocationTable& table, u64 address) {
    auto at = std::upper_bound(table.begin(), table.end(), address,
                               [](u64 b, const AllocationPtr& a) { return b < a->base; });
    return at == table.begin() ? nullptr : std::prev(at)->get();
}

}  // namespace ptxsim
