// Where a CTA and a warp of the forward are.
#pragma once
#include "../../common/problem.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm90 {

// A CTA has rows of one head; those that see most come first. One thread finds the place, and leaves it in shared
// memory: hardly any of it is read inside a loop, where registers are wanted.
template <class T>
struct Place {
  int head, head_k;
  Sequence sequence;
  int row;  // the first

  __device__ explicit Place(const FwdParams& params)
      : Place(params, unsigned((params.shape.seqlen_q + T::kRows - 1) / T::kRows)) {}

  __device__ bool has_rows() const { return row < sequence.seqlen_q; }
  __device__ int end_row() const { return min(row + T::kRows, sequence.seqlen_q); }

 private:
  __device__ Place(const FwdParams& params, unsigned row_blocks)
      : Place(params, HeadOfBatch(params.mask, params.shape, blockIdx.x / row_blocks),
              int(row_blocks - 1 - blockIdx.x % row_blocks) * T::kRows) {}

  __device__ Place(const FwdParams& params, const HeadOfBatch& of, int row)
      : head(of.head),
        head_k(of.head / int(params.shape.nheads / params.shape.nheads_k)),
        sequence(params.shape, params.varlen, of.batch),
        row(row) {}
};

template <class T>
__device__ Place<T>& place_in(char* smem) {
  return *reinterpret_cast<Place<T>*>(smem + T::kPlace);
}

// A CTA's first warpgroup copies, each other one computes 64 of its rows.
template <class T>
__device__ int warpgroup() {
  return __shfl_sync(0xffffffffu, threadIdx.x / T::kWarpgroup, 0);
}

// A thread among the consumers, and its warp's 16 rows.
template <class T>
struct Seat {
  int lane, first_row;

  __device__ explicit Seat(const Place<T>& place)
      : lane(threadIdx.x % 32), first_row(place.row + warp() * 16) {}

  __device__ static int thread() { return int(threadIdx.x) - T::kWarpgroup; }
  __device__ static int warp() { return thread() / 32; }
};

}  // namespace diffattn::cuda::sm90
