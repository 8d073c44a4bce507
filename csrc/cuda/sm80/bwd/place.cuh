// Where a CTA and a warp of the backward's main kernel are.
#pragma once
#include "../shared/problem.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm80 {

// Which block of keys a CTA has. With a fixed order of additions to dQ a CTA waits for the CTAs of the blocks
// behind its own, so these blocks have to be taken earlier: a ticket orders them.
template <class T>
struct KeyBlock {
  int batch, head_k, index;

  // ticket: a place in shared memory.
  __device__ KeyBlock(const BwdParams& params, unsigned* tickets, unsigned* ticket) {
    unsigned n = blockIdx.x;
    if (params.deterministic) {
      if (threadIdx.x == 0) *ticket = atomicAdd(tickets, 1u);
      __syncthreads();  // the ticket has been drawn
      n = *ticket;
    }
    const auto key_blocks = unsigned(params.shape.seqlen_k + T::kKeys - 1) / T::kKeys;
    const auto nheads_k = unsigned(params.shape.nheads_k);
    index = int(n % key_blocks);
    if (params.deterministic) index = int(key_blocks) - 1 - index;
    head_k = int(n / key_blocks % nheads_k);
    batch = int(n / key_blocks / nheads_k);
  }

  __device__ int first_key() const { return index * T::kKeys; }
};

// The same, with the sequence that the keys belong to, and the warp and lane of this thread.
template <class T>
struct KeyPlace : KeyBlock<T> {
  int lane, warp;
  Sequence sequence;

  // The ticket lies where nothing else comes before the first barrier. The shuffle tells the compiler that a
  // warp's number, and all that follows from it, is uniform.
  __device__ KeyPlace(const BwdParams& params, unsigned* tickets, char* smem)
      : KeyBlock<T>(params, tickets, reinterpret_cast<unsigned*>(smem + T::kMaps)),
        lane(threadIdx.x % 32),
        warp(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0)),
        sequence(params.shape, params.varlen, this->batch) {}

  __device__ bool has_keys() const { return this->first_key() < sequence.seqlen_k; }

  // How many key blocks behind this one the rows of a step see.
  __device__ int blocks_behind(const SequenceMask& mask, int step) const {
    const int last_row = min((step + 1) * T::kRows, sequence.seqlen_q) - 1;
    return int(ceil_div(mask.end(last_row), T::kKeys)) - 1 - this->index;
  }
};

}  // namespace diffattn::cuda::sm80
