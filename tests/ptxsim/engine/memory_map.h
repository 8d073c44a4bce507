// The process's registered allocations: the only global memory a kernel may touch.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base.h"

namespace ptxsim {

struct Allocation {
    u64 base = 0, size = 0;
    std::string name;
    bool writable = true;
    u8* defined = nullptr;               // one byte a byte, nonzero = written; null = all defined
    std::atomic<u64>* shadow = nullptr;  // race state, one entry per 4 bytes; see race_global.h
    void* mapping = nullptr;             // owned data mapping with its guard pages, or null
    u64 mapping_bytes = 0;
    int pins = 0;

    ~Allocation();
    bool contains(u64 address, u64 bytes) const { return address >= base && bytes <= size && address - base <= size - bytes; }
    u64 undefined_bytes() const;
};

using AllocationPtr = std::shared_ptr<Allocation>;
using AllocationTable = std::vector<AllocationPtr>;  // sorted by base

class MemoryMap {
  public:
    static MemoryMap& instance();

    // A mapping of its own between guard pages. Poisoned memory is NaN and undefined until written.
    AllocationPtr create(u64 bytes, const std::string& name, bool poison, bool sparse);
    AllocationPtr adopt(u64 address, u64 bytes, const std::string& name, bool writable);
    void remove(u64 base);
    std::shared_ptr<const AllocationTable> table() const;
    void clear_shadows();

  private:
    void insert(AllocationPtr allocation);
    mutable std::mutex mutex_;
    std::shared_ptr<const AllocationTable> table_ = std::make_shared<AllocationTable>();
};

// The allocation that holds the address, or the nearest one below it (for the message); null if none.
Allocation* find_allocation(const AllocationTable& table, u64 address);

}  // namespace ptxsim
