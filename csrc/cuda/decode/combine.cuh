// Merges the splits of each row, component by component, and only then subtracts.
#pragma once
#include <cute/arch/copy_sm80.hpp>

#include "../common/lanes.cuh"
#include "../common/limits.h"
#include "../common/mma.cuh"
#include "dependent.cuh"
#include "plan.h"
#include "splits.cuh"

namespace diffattn::cuda::decoding {

// A CTA has one row of one head, a thread two columns of both components.
constexpr int kMostCombineThreads = 2 * int(kMostHeaddim) / 2;

// Merges splits as the online softmax merges blocks of keys, many at once: their loads are in flight together,
// and each lane computes the weight of one split for all lanes.
struct MergedSplits {
  float reference[2] = {-FLT_MAX, -FLT_MAX};  // [comp]   log2; no infinities meet
  float total[2] = {};                        // [comp]
  float2 o[2] = {};                           // [comp]   of two columns

  // lses and rests [split, comp] and columns [split, comp, pitch] of `count` splits.
  __device__ MergedSplits(const float2* lses, const float2* rests, const float2* columns,
                          unsigned count, unsigned pitch) {
    // Each thread copies what it reads itself. ptxas would put plain loads next to their uses, one latency after
    // the other.
    __shared__ float2 slots[kAtOnce][2][kMostCombineThreads];
    __shared__ float2 weights[kMostCombineThreads / 32][2][kAtOnce];  // a warp's own, in turn
    const unsigned thread = threadIdx.x, split = thread % kAtOnce;
    for (unsigned first = 0; first < count; first += kAtOnce) {
      const unsigned here = min(kAtOnce, count - first);
      const float2 lse = split < here ? lses[first + split] : float2{-INFINITY, -INFINITY};
#pragma unroll 4
      for (unsigned i = 0; i < here; ++i, columns += 2 * pitch)
        for (int comp = 0; comp < 2; ++comp) copy(columns[comp * pitch], slots[i][comp][thread]);
      cute::cp_async_fence();
      float2* const weight = weights[thread / 32][first / kAtOnce % 2];
      // Both halves of a warp write the same.
      weight[split] = {weigh(0, lse.x, &rests[first + split].x),
                       weigh(1, lse.y, &rests[first + split].y)};
      cute::cp_async_wait<0>();
      __syncwarp();  // the weights of all lanes are there, and those before the last have been read
#pragma unroll 4
      for (unsigned i = 0; i < here; ++i) add(weight[i], slots[i][0][thread], slots[i][1][thread]);
    }
  }

  // Where no split saw a key, O = 0 and the LSE is -inf. Else the total is near 1 to the number of
  // keys, which the fast functions are made for.
  __device__ float2 output(int comp) const {
    const float inverse = total[comp] == 0 ? 0.f : __fdividef(1, total[comp]);
    return {o[comp].x * inverse, o[comp].y * inverse};
  }
  __device__ float lse(int comp) const {
    return (reference[comp] + __log2f(total[comp])) * float(M_LN2);
  }

 private:
  static constexpr unsigned kAtOnce = 16;

  __device__ static void copy(const float2& from, float2& to) {
    cute::SM80_CP_ASYNC_CACHEALWAYS<float2>::copy(from, to);
  }

  // The weight of this lane's split, after the greatest LSE has become the reference.
  __device__ float weigh(int comp, float lse, const float* rest) {
    const float highest = fmaxf(reference[comp], max_over<kAtOnce>(lse));
    float exponent = lse - highest;
    if (is_coarse(lse)) exponent += *rest;
    const float factor = exp2f(reference[comp] - highest), weight = exp2f(exponent);
    reference[comp] = highest;
    total[comp] = fmaf(total[comp], factor, sum_over<kAtOnce>(weight));
    o[comp] = {o[comp].x * factor, o[comp].y * factor};
    return weight;
  }

  __device__ void add(const float2& weight, const float2& part1, const float2& part2) {
    o[0] = {fmaf(weight.x, part1.x, o[0].x), fmaf(weight.x, part1.y, o[0].y)};
    o[1] = {fmaf(weight.y, part2.x, o[1].x), fmaf(weight.y, part2.y, o[1].y)};
  }
};

// The sum over all threads of a CTA, for each of them.
__device__ inline float block_sum(float x) {
  __shared__ float sums[kMostCombineThreads / 32];
  x = sum_over<32>(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();  // the sums of all warps are there
  float sum = sums[0];
#pragma unroll
  for (int warp = 1; warp < kMostCombineThreads / 32; ++warp)
    if (warp < blockDim.x / 32) sum += sums[warp];
  return sum;
}

// The splits of a row that have keys: what its CTAs compute too.
__device__ inline unsigned count_splits(const DecodeParams& params, const DecodePlan& plan,
                                        int batch, int head, int row) {
  int head_k, in_group;
  plan.group(head_k, in_group, head);
  const bool streaming = streams(params.mask, head_k);
  const CachedSequence sequence(params, plan, batch, streaming && params.cache.ring.slots);
  const PackedRows rows(plan, (row * plan.group.divisor + in_group) / plan.rows);
  const SeenKeys<true> seen(params, sequence, rows, head_k);
  const Splits splits(streaming ? plan.streaming.splits : plan.full.splits, plan.least_blocks,
                      seen.blocks());
  return unsigned(splits.count());
}

template <class Element>
__global__ void __launch_bounds__(kMostCombineThreads)
    combine_kernel(const __grid_constant__ DecodeParams params,
                   const __grid_constant__ DecodePlan plan) {
  const Shape& shape = params.shape;
  const unsigned dv = unsigned(shape.headdim_v);
  const bool exist = 2 * threadIdx.x < dv;  // this thread's columns
  const unsigned col = exist ? 2 * threadIdx.x : 0;
  let_next_begin();
  unsigned count = 0;
  if (!kMayDepend) count = plan.counts[blockIdx.x];

  // Used at the end, but loaded now, so that no thread waits for them.
  int batch = int(blockIdx.x), head, row;
  plan.seqlen_q(batch, row, batch);
  plan.nheads(batch, head, batch);
  const auto offset = [&](const View& v) { return batch * v.batch + row * v.row + head * v.head; };
  const bool separate = params.maps[kSignal].o.data != nullptr;  // each map's own result
  const float lambda =
      separate ? 0.f : static_cast<const float*>(params.lam.data)[offset(params.lam)];
  const bool normed = params.norm.eps >= 0;
  const auto* weights = static_cast<const float2*>(normed ? params.norm.weight : nullptr);
  const float2 weight = weights ? weights[col / 2] : float2{1, 1};

  const int64_t first = int64_t(blockIdx.x) * plan.most_splits * 2;
  const auto* const lses = reinterpret_cast<const float2*>(plan.lse + first);
  const auto* const rests = reinterpret_cast<const float2*>(plan.rest + first);
  const auto* const columns = reinterpret_cast<const float2*>(plan.out + first * dv + col);
  // While the splits' CTAs still run. A row without keys waits for none; and so the compiler cannot leave this for
  // after the wait.
  if (kMayDepend) count = count_splits(params, plan, batch, head, row);
  if (count > 0) wait_for_previous();  // the splits are there
  const MergedSplits merged(lses, rests, columns, count, dv / 2);
  const auto store = [&](const View& to, const float2& columns) {
    *reinterpret_cast<float2*>(static_cast<float*>(to.data) + offset(to) + col) = columns;
  };
  if (threadIdx.x < 2) {
    const View& lse = params.maps[threadIdx.x].lse;
    static_cast<float*>(lse.data)[offset(lse)] = threadIdx.x == 0 ? merged.lse(0) : merged.lse(1);
  }

  const float2 o1 = merged.output(0), o2 = merged.output(1);
  if (separate) {
    if (!exist) return;
    store(params.maps[kSignal].o, o1);
    store(params.maps[kNoise].o, o2);
    return;
  }
  // Y = (O1 - lambda·O2)·rstd·weight·scale
  const float2 o{fmaf(-lambda, o2.x, o1.x), fmaf(-lambda, o2.y, o1.y)};
  float factor = float(params.norm.scale);
  if (normed) {
    const float squares = block_sum(exist ? fmaf(o.x, o.x, o.y * o.y) : 0);
    factor *= rsqrtf(squares / float(dv) + float(params.norm.eps));
  }
  if (!exist) return;
  Element* const out = static_cast<Element*>(params.out.data) + offset(params.out) + col;
  *reinterpret_cast<uint32_t*>(out) =
      Half<Element>::pack(o.x * factor * weight.x, o.y * factor * weight.y);
}

}  // namespace diffattn::cuda::decoding
