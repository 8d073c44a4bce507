// Where a CTA and a warp of the forward are.
#pragma once
#include "../../common/problem.cuh"

namespace diffattn::cuda::sm80 {

// A CTA has rows of one head; those that see most come first. A pair of its warps has some of them, and each
// warp of the pair one map.
template <class T>
struct Place {
  int lane, warp, pair, map;
  int head, head_k;
  Sequence sequence;
  int cta_row, first_row;  // of the CTA, of the pair

  __device__ explicit Place(const FwdParams& params)
      : Place(params, unsigned((params.shape.seqlen_q + T::kRows - 1) / T::kRows)) {}

  __device__ bool has_rows() const { return cta_row < sequence.seqlen_q; }
  __device__ int cta_end_row() const { return min(cta_row + T::kRows, sequence.seqlen_q); }
  __device__ int pair_end_row() const {
    return min(first_row + T::kRowTiles * 16, sequence.seqlen_q);
  }

 private:
  __device__ Place(const FwdParams& params, unsigned row_blocks)
      : Place(params, HeadOfBatch(params.mask, params.shape, blockIdx.x / row_blocks),
              int(row_blocks - 1 - blockIdx.x % row_blocks) * T::kRows) {}

  __device__ Place(const FwdParams& params, const HeadOfBatch& of, int row)
      : lane(threadIdx.x % 32),
        warp(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0)),
        pair(warp / 2),
        map(warp % 2),
        head(of.head),
        // Divided again: carried along, it would cost the main loop ten instructions at (64, 128).
        head_k(of.head / int(params.shape.nheads / params.shape.nheads_k)),
        sequence(params.shape, params.varlen, of.batch),
        cta_row(row),
        first_row(cta_row + pair * T::kRowTiles * 16) {}
};

}  // namespace diffattn::cuda::sm80
