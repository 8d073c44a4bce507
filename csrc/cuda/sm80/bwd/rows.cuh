// The rows that a CTA of the kernels before and after the main one has.
#pragma once
#include "../../common/problem.cuh"
#include "workspace.h"

namespace diffattn::cuda::sm80 {

// One block of rows of one head. Divisions are in 32 bits: there are fewer than 2^31 CTAs.
struct RowBlock {
  int batch, head;
  int first_row;  // may lie behind the sequence's last
  Sequence sequence;
  int64_t block;  // [block, head] of the workspace

  __device__ explicit RowBlock(const BwdParams& params)
      : RowBlock(params, blockIdx.x / unsigned(params.shape.nheads),
                 unsigned(params.shape.seqlen_q + kRowBlock - 1) / kRowBlock) {}

 private:
  // index: of the block of rows, over all sequences; each has `blocks` of them.
  __device__ RowBlock(const BwdParams& params, unsigned index, unsigned blocks)
      : batch(int(index / blocks)),
        head(int(blockIdx.x % unsigned(params.shape.nheads))),
        first_row(int(index % blocks) * kRowBlock),
        sequence(params.shape, params.varlen, batch) {
    const int64_t first =
        BwdWorkspace::first_block(params.shape, params.varlen, batch, sequence.q_begin);
    block = (first + first_row / kRowBlock) * params.shape.nheads + head;
  }
};

}  // namespace diffattn::cuda::sm80
