// What the backward's kernels hand to one another in memory that the caller lends.
#pragma once
#include "../../common/limits.h"

namespace diffattn::cuda::sm80 {

// Kernels take the query rows in blocks of this many. Each packed sequence begins with a new block.
constexpr int kRowBlock = 32;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of one row; l1 and l2 are in log2 units. See prepare.cuh.
struct alignas(16) ScoreConstants {
  float l1, l2, e2, minus_lambda;
};

// The numbers of 16 rows that the main kernel needs, in units of u. Its accumulators hold rows g and
// g + 8, so these stand together.
struct RowConstants {
  ScoreConstants of_row[2][8];
  float4 minus_d1[8];  // of row g twice, of row g + 8 twice: an accumulator for dP to start from
};
constexpr int kConstantsBytes = kRowBlock / 16 * sizeof(RowConstants);

struct BwdWorkspace {
  char* rows;  // [block, head]   RowConstants, two; u, the gradient of O without rstd, as a tile
  float* dq;   // [block, head, 2, 2·d/8, 4, 32]   d padded; accumulator fragments
  float* weight_parts;  // [block, head, dv]   each block's part of the norm weight's gradient
  int* turns;           // [block, head]   key blocks that have added to dq
  unsigned* tickets;    // [1]   key blocks that have been taken
  int64_t blocks;       // at most, of all sequences together

  // The first block of a sequence of the batch.
  __device__ static int64_t first_block(const Shape& shape, const Varlen& varlen, int64_t b,
                                        int64_t q_begin) {
    if (varlen.cu_seqlens_q) return q_begin / kRowBlock + b;
    return b * (ceil_div(shape.seqlen_q, kRowBlock));
  }
};

// Whether the narrow kernels serve a problem: V as wide as Q and a K that both components share
// (DIFF V2). Everything else goes to the wide ones, which pad what is missing. Head dims are padded to multiples
// of 32.
inline bool is_narrow(const Shape& shape) {
  return shape.headdim_v == shape.headdim && shape.k_components == 1;
}

}  // namespace diffattn::cuda::sm80
