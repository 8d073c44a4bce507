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
    u8* defined = nullptr;                // one byte a byte, nonzero = written; null = all defined
    u8* allowed = nullptr;                // one byte a byte, zero = a gap between the rows of views; null = no gaps
    std::atomic<u64>* shadow = nullptr;   // race state, one entry per 4 bytes; see race_words.h
    std::atomic<u64>* threads = nullptr;  // two more per 4 bytes, unless the memory is read-only
    void* mapping = nullptr;              // owned data mapping with its guard pages, or null
    u64 mapping_bytes = 0;
    int pins = 0;

    ~Allocation();
    bool contains(u64 address, u64 bytes) const {
        return address >= base && bytes <= size && address - base <= size - bytes;
    }
    bool undefined(u64 byte) const { return defined && !defined[byte] && (!allowed || allowed[byte]); }
    u64 undefined_bytes() const;
    // Opens the bytes of a strided view; once there is one, all other bytes are gaps. Undefined bytes become NaN
    // poison.
    void allow(u64 offset, const std::vector<u64>& shape, const std::vector<u64>& strides, u64 item, bool is_defined);
};

using AllocationPtr = std::shared_ptr<Allocation>;
using AllocationTable = std::vector<AllocationPtr>;  // sorted by base

class MemoryMap {
  public:
    static MemoryMap& instance();

    // A mapping of its own between guard pages. Poisoned memory is NaN and undefined until written.
    AllocationPtr create(u64 bytes, const std::string& name, bool poison, bool sparse);
    // Memory of others. Undefined memory is filled with NaN poison, like that of create().
    AllocationPtr adopt(u64 address, u64 bytes, const std::string& name, bool writable, bool defined);
    void remove(u64 base);
    std::shared_ptr<const AllocationTable> table() const;
    void clear_shadows();

  private:
    static void map_shadows(Allocation& allocation);
    void insert(AllocationPtr allocation);
    void refuse_overlap(u64 address, u64 bytes, const std::string& name) const;
    mutable std::mutex mutex_;
    std::shared_ptr<const AllocationTable> table_ = std::make_shared<AllocationTable>();
};

// The allocation that holds the address, or the nearest one below it (for the message); null if none.
Allocation* find_allocation(const AllocationTable& table, u64 address);

}  // namespace ptxsim
