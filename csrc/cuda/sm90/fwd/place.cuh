// Where a CTA and a warp of the forward are.
#pragma once
#include "../../sm80/fwd/place.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm90 {

using sm80::HeadOfBatch;
using sm80::Sequence;

// A CTA has rows of one head; those that see most come first. Its first warpgroup copies, each other one computes 64
// of the rows.
template <class T>
struct Place {
  int lane, warpgroup;  // 0: the producer
  int head, head_k;
  Sequence sequence;
  int cta_row, first_row;  // of the CTA, of a consumer's warp

  __device__ explicit Place(const FwdParams& params)
      : Place(params, unsigned((params.shape.seqlen_q + T::kRows - 1) / T::kRows)) {}

  __device__ bool has_rows() const { return cta_row < sequence.seqlen_q; }
  __device__ int cta_end_row() const { return min(cta_row + T::kRows, sequence.seqlen_q); }
  __device__ bool produces() const { return warpgroup == 0; }
  __device__ int consumer() const { return warpgroup - 1; }
  __device__ int consumer_warp() const { return int(threadIdx.x - T::kWarpgroup) / 32; }
  __device__ int consumer_thread() const { return int(threadIdx.x) - T::kWarpgroup; }

 private:
  __device__ Place(const FwdParams& params, unsigned row_blocks)
      : Place(params, HeadOfBatch(params.mask, params.shape, blockIdx.x / row_blocks),
              int(row_blocks - 1 - blockIdx.x % row_blocks) * T::kRows) {}

  __device__ Place(const FwdParams& params, const HeadOfBatch& of, int row)
      : lane(threadIdx.x % 32),
        warpgroup(__shfl_sync(0xffffffffu, threadIdx.x / T::kWarpgroup, 0)),
        head(of.head),
        head_k(of.head / int(params.shape.nheads / params.shape.nheads_k)),
        sequence(params.shape, params.varlen, of.batch),
        cta_row(row),
        first_row(cta_row + consumer_warp() * 16) {}
};

}  // namespace diffattn::cuda::sm90
