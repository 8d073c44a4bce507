// Where a CTA is in the grid, and where a thread is in its CTA.
#pragma once
#include "plan.h"

namespace diffattn::cuda::sm80 {

struct SplitPlace {
  int row_block;  // of the query rows of a KV head
  int head_k, split, batch;

  // Neighbouring CTAs read the same keys for different rows, and then the keys of neighbouring heads.
  // The last row block comes first because its rows see the most keys.
  __device__ SplitPlace(const DecodePlan& plan, bool one_block) {
    int rest = int(blockIdx.x), from_last = 0;
    if (!one_block) plan.row_blocks(rest, from_last, rest);
    row_block = one_block ? 0 : plan.row_blocks.divisor - 1 - from_last;
    plan.nheads_k(rest, head_k, rest);
    plan.splits(batch, split, rest);
  }
};

// Warps form groups, each of which takes blocks of keys of its own. Each warp of a group has eight of
// the CTA's query rows, and each quad of its lanes has one of these.
struct Role {
  int group;
  int thread;    // in the group
  int row_warp;  // in the group
  int lane;

  __device__ explicit Role(int group_threads)
      : group(threadIdx.x / group_threads),
        thread(threadIdx.x % group_threads),
        row_warp(thread / 32),
        lane(threadIdx.x % 32) {}

  __device__ int first_row() const { return row_warp * 8; }      // of the warp, in the CTA
  __device__ int row() const { return first_row() + lane / 4; }  // of the lane
};

}  // namespace diffattn::cuda::sm80
