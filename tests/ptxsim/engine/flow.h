// Control flow of a function: where divergent branches reconverge, and which register lives in which cell.
#pragma once

#include <vector>

#include "ptx.h"

namespace ptxsim {

struct Flow {
    struct Block {
        int begin = 0, end = 0;  // instructions
        std::vector<int> successors;
        bool leaves = false;  // may return or exit
    };
    std::vector<Block> blocks;
    std::vector<int> block_of;                  // instruction → block
    std::vector<int> immediate_post_dominator;  // block → block, or -1 for the function's end
};

Flow analyse_flow(const Function& function);

struct RegisterMap {
    std::vector<u32> index;  // register id → slot within its class (sink slots are 0)
    u32 narrow = 1, wide = 1, predicates = 1;
};

// Registers that are never live together share a cell, which keeps a warp's registers in cache.
// Those of `apart`, if it is not empty, share theirs with none: something may hold them after their last use.
RegisterMap allocate_registers(const Function& function, const Flow& flow, const std::vector<bool>& apart);

// Register ids an instruction writes and reads.
void registers_of(const Inst& inst, std::vector<int>& writes, std::vector<int>& reads);

}  // namespace ptxsim
