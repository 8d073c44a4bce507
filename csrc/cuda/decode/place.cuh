// Where a CTA is in the grid, and where a thread is in its CTA.
#pragma once
#include "../common/problem.cuh"
#include "plan.h"

namespace diffattn::cuda::decoding {

struct SplitPlace {
  int row_block;  // of the query rows of a KV head
  int head_k, split, batch;
  int head_in_keys;  // among the heads of its cache
  bool in_ring;      // which is a ring

  const Divisor& splits;  // of the head

  // Neighbouring CTAs read the same keys for different rows, and then the keys of neighbouring heads.
  // The last row block comes first because its rows see the most keys. apart: heads that stream have a ring.
  __device__ SplitPlace(const DecodePlan& plan, const Mask& mask, bool one_block, bool apart)
      : SplitPlace(plan, mask, one_block, apart, Unit(plan, one_block)) {}

 private:
  // A row block, and which of all sequences' splits of all KV heads it is.
  struct Unit {
    int from_last = 0, n = int(blockIdx.x);
    bool is_full;  // its head sees every key

    __device__ Unit(const DecodePlan& plan, bool one_block) {
      if (!one_block) plan.row_blocks(n, from_last, n);
      is_full = n < int(plan.full_units);
      if (!is_full) n -= int(plan.full_units);
    }
  };

  __device__ SplitPlace(const DecodePlan& plan, const Mask& mask, bool one_block, bool apart,
                        Unit unit)
      : row_block(one_block ? 0 : plan.row_blocks.divisor - 1 - unit.from_last),
        in_ring(apart && !unit.is_full),
        splits(unit.is_full ? plan.full.splits : plan.streaming.splits) {
    const Divisor& heads = unit.is_full ? plan.full.heads : plan.streaming.heads;
    int rank, rest;
    heads(rest, rank, unit.n);
    splits(batch, split, rest);
    head_k = HeadKind(mask, unit.is_full).head_k(unsigned(rank));
    head_in_keys = apart ? rank : head_k;
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

}  // namespace diffattn::cuda::decoding
