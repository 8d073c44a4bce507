// griddepcontrol and programmatic launches (PTX ISA 9.7.13.16): a grid that starts while the one before it in its
// stream may still run. Until its griddepcontrol.wait it may not read what that grid writes, nor overwrite what it
// reads.
//
// Grids run here one after the other; what the earlier one touched is known from the race shadow of global memory,
// whose entries carry an epoch of their launch.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "memory_map.h"
#include "race_global.h"

namespace ptxsim {

struct Cta;
struct Warp;

// The grids that may still run when a programmatic launch begins.
class Prerequisites {
  public:
    std::vector<u32> epochs;
    std::string name;  // of the kernel launched last
    bool contains(u32 epoch) const;
};

// Throws Race if the access touches memory of a prerequisite grid and nothing orders it after a griddepcontrol.wait.
void check_prerequisites(Warp& w, int lane, const Allocation& a, u64 address, u32 bytes, GlobalAccess access);

// How a launch behaved towards those that depend on it.
struct Dependents {
    std::atomic<bool> early{false};  // a CTA let dependents start, or ended, without having waited itself
};
void note_end(const Cta& cta);

}  // namespace ptxsim
