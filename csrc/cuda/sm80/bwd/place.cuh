// Where a CTA and a warp of the backward's main kernel are.
#pragma once
#include "../../common/lanes.cuh"
#include "../../common/problem.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm80 {

// The blocks of keys of a head: those of its sinks, if it streams with some, and then those of its other keys. So
// no block has keys of both, and the rows that see it are one range.
struct BlocksOfHead {
  unsigned sinks, all;

  __host__ __device__ BlocksOfHead(const Shape& shape, int64_t sink, int keys) {
    const int64_t seqlen_k = shape.seqlen_k, of_sinks = sink < seqlen_k ? sink : seqlen_k;
    sinks = unsigned(ceil_div(of_sinks, keys));
    all = sinks + unsigned(ceil_div(seqlen_k - of_sinks, keys));
  }
};

// Which block of which head a CTA has. With a fixed order of additions to dQ a CTA waits for the CTAs of the blocks
// behind its own, so these blocks have to be taken earlier: a ticket orders them.
template <class T>
struct KeyBlock {
  int batch, head_k;
  bool of_sinks;
  int index;  // among the blocks of the sinks, or of the other keys

  // ticket: a place in shared memory.
  __device__ KeyBlock(const BwdParams& params, unsigned* tickets, unsigned* ticket) {
    unsigned n = blockIdx.x;
    if (params.deterministic) {
      if (threadIdx.x == 0) *ticket = atomicAdd(tickets, 1u);
      __syncthreads();  // the ticket has been drawn
      n = *ticket;
    }
    const Shape& shape = params.shape;
    const BlocksOfHead of_full(shape, 0, T::kKeys);
    const HeadKind kind = HeadKind::of(params.mask, shape, of_full.all, n);
    const BlocksOfHead blocks =
        kind.full ? of_full : BlocksOfHead(shape, params.mask.sink, T::kKeys);
    const unsigned at = params.deterministic ? blocks.all - 1 - n % blocks.all : n % blocks.all;
    of_sinks = at < blocks.sinks;
    index = int(of_sinks ? at : at - blocks.sinks);
    head_k = kind.head_k(n / blocks.all % kind.count(shape));
    batch = int(n / blocks.all / kind.count(shape));
  }
};

// The same, with the keys of the block, the sequence that they belong to, and the warp and lane of this thread.
template <class T>
struct KeyPlace : KeyBlock<T> {
  int lane, warp;
  Sequence sequence;
  KeyInterval mask;  // which rows see the keys
  int first_key;

  // The ticket lies where nothing else comes before the first barrier. The shuffle tells the compiler that a
  // warp's number, and all that follows from it, is uniform.
  __device__ KeyPlace(const BwdParams& params, unsigned* tickets, char* smem)
      : KeyBlock<T>(params, tickets, reinterpret_cast<unsigned*>(smem + T::kMaps)),
        lane(threadIdx.x % 32),
        warp(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0)),
        sequence(params.shape, params.varlen, this->batch),
        mask(interval(HeadMask(params.mask, this->head_k, sequence), this->of_sinks)),
        // Kept, because computed again in each step it would spill at d = 96.
        first_key(keep_uniform(mask.first_key() + this->index * T::kKeys)) {}

  __device__ int keys() const { return min(mask.end_key() - first_key, T::kKeys); }

  // How many key blocks behind this one the rows of a step see.
  __device__ int blocks_behind(const Mask& of_call, int step) const {
    // Made anew: few calls come here, and in every step registers are short.
    const HeadMask head_mask(of_call, keep_uniform(this->head_k), sequence);
    const KeyInterval window = head_mask.window();
    const int first_row = step * T::kRows;
    const int last_row = min(first_row + T::kRows, sequence.seqlen_q) - 1;
    const int end = blocks_until(window, window.end(last_row));
    if (!this->of_sinks) return end - 1 - this->index;
    const int begin = (window.begin(first_row) - window.first_key()) / T::kKeys;
    return blocks_until(mask, mask.end(last_row)) - 1 - this->index + max(end - begin, 0);
  }

 private:
  __device__ static KeyInterval interval(const HeadMask& of_head, bool of_sinks) {
    return of_sinks ? of_head.sinks() : of_head.window();
  }
  __device__ static int blocks_until(const KeyInterval& interval, int end_key) {
    return int(ceil_div(max(end_key - interval.first_key(), 0), T::kKeys));
  }
};

}  // namespace diffattn::cuda::sm80
