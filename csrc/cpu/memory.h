// Working memory that survives calls: fresh pages cost more than small problems take.
#pragma once
#include <cstddef>

namespace diffattn::cpu {

// At least `bytes`, aligned to cache lines, from what earlier calls gave back or from the system.
// Throws std::bad_alloc.
void* take_memory(std::size_t bytes);

// Kept for later calls while that and what is in use are at most 28 MiB in the process; the rest goes
// back to the system.
void give_back_memory(void* p) noexcept;

}  // namespace diffattn::cpu
