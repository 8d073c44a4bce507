// Working memory that survives calls: fresh pages cost more than small problems take.
#pragma once
#include <cstddef>
#include <new>
#include <string>
#include <utility>

namespace diffattn::cpu {

// Says what there was no memory for; a MemoryError in Python.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string what) : what_(std::move(what)) {}
  const char* what() const noexcept override { return what_.c_str(); }

 private:
  std::string what_;
};

// At least `bytes`, aligned to cache lines, from what earlier calls gave back or from the system.
// Throws OutOfMemory.
void* take_memory(std::size_t bytes);

// Kept for later calls while that and what is in use are at most 28 MiB in the process; the rest goes
// back to the system.
void give_back_memory(void* p) noexcept;

}  // namespace diffattn::cpu
