// Where a CTA and a warp of the forward are.
#pragma once
#include "../shared/problem.cuh"

namespace diffattn::cuda::sm80 {

// A CTA has rows of one head; those that see most come first. A pair of its warps has some of them, and each
// warp of the pair one map.
template <class T>
struct Place {
  int lane, warp, pair, map;
  int head;
  Sequence sequence;
  int cta_row, first_row;  // of the CTA, of the pair

  __device__ explicit Place(const FwdParams& params)
      : Place(params, int((params.shape.seqlen_q + T::kRows - 1) / T::kRows)) {}

  __device__ bool has_rows() const { return cta_row < sequence.seqlen_q; }

 private:
  __device__ Place(const FwdParams& params, int row_blocks)
      : lane(threadIdx.x % 32),
        warp(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0)),
        pair(warp / 2),
        map(warp % 2),
        head(blockIdx.x / row_blocks % int(params.shape.nheads)),
        sequence(params.shape, params.varlen, blockIdx.x / row_blocks / int(params.shape.nheads)),
        cta_row((row_blocks - 1 - blockIdx.x % row_blocks) * T::kRows),
        first_row(cta_row + pair * T::kRowTiles * 16) {}
};

}  // namespace diffattn::cuda::sm80
