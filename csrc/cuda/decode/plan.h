// How a step of decoding is spread over CTAs, and what they leave for one another.
#pragma once
#include <cutlass/fast_math.h>

#include "../../diffattn.h"

namespace diffattn::cuda::decoding {

// A number that the device divides by. A division that the host has prepared takes an eighth of the instructions,
// and nothing hides the time of the instructions before the first load.
using Divisor = cutlass::FastDivmod;

// The KV heads that stream, or those that do not.
struct KindPlan {
  Divisor heads;
  Divisor splits;  // most parts that the keys of a sequence are cut into
};

// How a step of decoding is spread over CTAs, from shapes alone. Query rows are those of a KV head:
// row m is row m / group of query head m % group of the group.
struct DecodePlan {
  Divisor group;       // query heads of a KV head
  int rows;            // query rows of a CTA: kFewRows or kManyRows
  Divisor row_blocks;  // CTAs that have query rows of one KV head
  KindPlan full, streaming;
  // Splits of all KV heads of all sequences. Those of heads that see every key come first, because they take
  // longest.
  int64_t units, full_units;
  int most_splits;   // of either kind
  int least_blocks;  // of kBlockKeys keys in a part
  // New keys are written by the CTAs that read the cache, if not by a kernel of its own: before, so that many CTAs can
  // read them, or to a ring after, so that they overwrite nothing that is still read.
  bool append_first, append_to_ring_last;
  Divisor seqlen_q, nheads;  // of the shape
  Divisor page;              // keys; without pages as many as a cache may hold
  Divisor ring;              // its slots
  // What splits leave to the combine kernel; absent with one split.
  float* out = nullptr;   // [batch, head, row, split, comp, dv]   normalised
  float* lse = nullptr;   // [batch, head, row, split, comp]       log2
  float* rest = nullptr;  // [batch, head, row, split, comp]       what a coarse lse lost
  int* counts = nullptr;  // [batch, head, row]                    splits that have keys
};

constexpr int kFewRows = 8, kManyRows = 32;

// From here on the LSE of a split is *coarse*: as an fp32 number it has lost more of the logarithm of
// the sum (2^-14) than its weight among the splits can spare. What it has lost is stored next to it.
constexpr float kCoarseFrom = 1 << 10;
__device__ inline bool is_coarse(float lse) {
  return fabsf(lse) >= kCoarseFrom && fabsf(lse) < INFINITY;
}

}  // namespace diffattn::cuda::decoding
