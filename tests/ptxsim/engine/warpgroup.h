// Four warps that execute wgmma and setmaxnreg together, and the registers that setmaxnreg moves between them.
#pragma once

#include <deque>
#include <vector>

#include "base.h"

namespace ptxsim {

struct Cta;
struct Form;
struct Warp;

constexpr u32 kWarpgroup = 4;  // warps

// What the warps of a warpgroup have executed: each has to execute the same, in the same order, whenever it comes.
class Warpgroup {
  public:
    // This warp executes the instruction at its pc with these operands.
    void execute(Warp& w, u64 first = 0, u64 second = 0);
    void exit(Warp& w);
    // Have all four executed what this warp executed before its last instruction?
    bool whole(const Warp& w) const;

  private:
    struct Step {
        u32 pc;
        u64 first, second;
        u32 warps;  // that have executed it, one bit each
    };
    std::deque<Step> steps_;
    u64 dropped_ = 0;  // steps all four have executed
    u64 done_[kWarpgroup] = {};
    u32 exited_ = 0;
};

// "per-CTA-register-pool" (PTX ISA 9.7.19.5), in registers a lane of one warp.
struct RegisterPool {
    u32 free = 0;
    std::vector<u32> of_warp;
    std::vector<std::vector<u32>> moves;  // by warp: its clock at each setmaxnreg
    void start(const Cta& cta);
    // "all warps in the warpgroup must synchronize explicitly before executing subsequent setmaxnreg instructions"
    void check_synchronised(const Warp& w) const;
};

}  // namespace ptxsim
