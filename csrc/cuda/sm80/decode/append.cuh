// New keys and values written behind the cached ones, keys rotated to their positions.
#pragma once
#include "cache.cuh"
#include "rotary.cuh"

namespace diffattn::cuda::sm80 {

// One row of a tensor, in elements.
template <class Element>
__device__ Element* row_of(const View& v, int64_t offset) {
  return static_cast<Element*>(v.data) + offset;
}

// The chunks of a token of one KV head: at most K1, K2 and a V of twice their width.
constexpr int kMostTokenChunks = 4 * int(kMostHeaddim) / kChunk;

// Writes the new tokens first, first + step, .. of one KV head, a chunk of each by a thread; there are
// kMostTokenChunks of them or more. Tokens without a slot are dropped.
template <class Element>
__device__ void append_tokens(const DecodeParams& p, const CachedSequence& s, const Pages& pages,
                              int head_k, int first, int step, unsigned thread) {
  const unsigned k_chunks = unsigned(p.shape.headdim) / kChunk;
  const unsigned all_k = unsigned(p.shape.k_components) * k_chunks;
  if (thread >= all_k + unsigned(p.shape.headdim_v) / kChunk) return;
  const bool is_k = thread < all_k;
  const CachedMap& map = p.maps[is_k ? thread / k_chunks : 0];
  const View &from = is_k ? map.k_new : p.v_new, &to = is_k ? map.k_cache : p.v_cache;
  const int col = (is_k ? thread % k_chunks : thread - all_k) * kChunk;
  const Rotator<Element> rotator(is_k ? p.cache.rotary : Rotary{});
  const int end = min(int(p.cache.seqlen_new), s.capacity - s.cached);
  for (int t = first; t < end; t += step) {
    const int key = s.cached + t;
    const Place place = pages.of(key);
    if (!pages.exists(place.page)) continue;
    const auto* row =
        row_of<const Element>(from, s.batch * from.batch + t * from.row + head_k * from.head);
    auto* slot = row_of<Element>(to, pages.offset(to, place) + head_k * to.head + col);
    *reinterpret_cast<uint4*>(slot) = rotator.load(row, col, key);
  }
}

constexpr int kAppendTokens = 4;  // of a CTA

// Appends before the keys are read by another kernel: for prompts, whose rows many CTAs share.
template <class Element>
__global__ void __launch_bounds__(kMostTokenChunks)
    append_kernel(const __grid_constant__ DecodeParams params,
                  const __grid_constant__ DecodePlan plan) {
  const int heads = int(params.shape.nheads_k);
  const int parts = int((params.cache.seqlen_new + kAppendTokens - 1) / kAppendTokens);
  const CachedSequence sequence(params, blockIdx.x / parts / heads);
  const Pages pages(params, sequence, plan.page);
  append_tokens<Element>(params, sequence, pages, blockIdx.x / parts % heads, blockIdx.x % parts,
                         parts, threadIdx.x);
}

template <class Element>
void launch_append(const DecodeParams& params, const DecodePlan& plan, cudaStream_t stream) {
  const int64_t parts = (params.cache.seqlen_new + kAppendTokens - 1) / kAppendTokens;
  const int64_t ctas = parts * params.shape.nheads_k * params.shape.batch;
  check_size("append: new tokens x heads x batch", ctas, kMaxCtas);
  append_kernel<Element><<<unsigned(ctas), kMostTokenChunks, 0, stream>>>(params, plan);
  check(cudaGetLastError(), "append: launch");
}

}  // namespace diffattn::cuda::sm80
