// New keys and values written behind the cached ones, keys rotated to their positions.
#pragma once
#include "cache.cuh"
#include "dependent.cuh"
#include "place.cuh"
#include "rotary.cuh"

namespace diffattn::cuda::decoding {

// One row of a tensor, in elements.
template <class Element>
__device__ Element* row_of(const View& v, int64_t offset) {
  return static_cast<Element*>(v.data) + offset;
}

// The most chunks that a token has of one KV head: K1, K2, and a V of twice their width.
constexpr int kMostTokenChunks = 4 * int(kMostHeaddim) / kChunk;

// A KV head, and the same head among those of its cache.
struct CachedHead {
  int head_k, in_keys;
};

// Writes the new tokens first, first + step, .. of one KV head. Each of at least kMostTokenChunks
// threads writes one chunk of each token. Tokens without a place in the cache are dropped.
template <class Element>
__device__ void append_tokens(const DecodeParams& p, const CachedSequence& s,
                              const CachedHead& head, int first, int step, unsigned thread) {
  const unsigned k_chunks = unsigned(p.shape.headdim) / kChunk;
  const unsigned all_k = unsigned(p.shape.k_components) * k_chunks;
  if (thread >= all_k + unsigned(p.shape.headdim_v) / kChunk) return;
  const bool is_k = thread < all_k;
  const CachedMap& map = p.maps[is_k ? thread / k_chunks : 0];
  const View& from = is_k ? map.k_new : p.v_new;
  const View& to = s.in_ring ? is_k ? map.k_stream : p.v_stream : is_k ? map.k_cache : p.v_cache;
  const int col = (is_k ? thread % k_chunks : thread - all_k) * kChunk;
  const Rotator<Element> rotator(is_k ? p.cache.rotary : Rotary{});
  const int end = s.keys - s.cached;
  for (int t = first; t < end; t += step) {
    const int key = s.cached + t;
    if (!s.has_slot(p.cache.ring, key)) continue;
    const CachedRow at = s.pages.row_of(key);
    if (!s.pages.exists(at.page)) continue;
    const auto* const row =
        row_of<const Element>(from, s.batch * from.batch + t * from.row + head.head_k * from.head);
    auto* const cached = row_of<Element>(to, Pages::offset(to, at) + head.in_keys * to.head + col);
    *reinterpret_cast<uint4*>(cached) = rotator.load(row, col, s.uncounted + key);
  }
}

// Writes one CTA's share of the new tokens, if no other kernel does: the CTAs of a KV head take turns.
template <class T>
__device__ void append_share(const DecodeParams& params, const DecodePlan& plan,
                             const SplitPlace& place, const CachedSequence& sequence) {
  static_assert(T::kThreads >= kMostTokenChunks);
  if (place.in_ring ? plan.append_to_ring_last : plan.append_first) return;
  const int row_blocks = plan.row_blocks.divisor;
  append_tokens<typename T::Element>(params, sequence, {place.head_k, place.head_in_keys},
                                     place.split * row_blocks + place.row_block,
                                     place.splits.divisor * row_blocks, threadIdx.x);
}

constexpr int kAppendTokens = 4;  // per CTA

// Appends before another kernel reads the keys, or to a ring after it has read those that are overwritten. This is
// for prompts, whose rows many CTAs share. `heads`: those that the cache has.
template <class Element>
__global__ void __launch_bounds__(kMostTokenChunks)
    append_kernel(const __grid_constant__ DecodeParams params,
                  const __grid_constant__ DecodePlan plan, int heads, bool to_ring) {
  let_next_begin();
  wait_for_previous();  // it has read what a ring loses
  const int parts = int((params.cache.seqlen_new + kAppendTokens - 1) / kAppendTokens);
  const CachedSequence sequence(params, plan, blockIdx.x / parts / heads, to_ring);
  const int nth = blockIdx.x / parts % heads;
  const bool all = heads == params.shape.nheads_k;
  const int head_k = all ? nth : HeadKind(params.mask, !to_ring).head_k(unsigned(nth));
  append_tokens<Element>(params, sequence, {head_k, nth}, blockIdx.x % parts, parts, threadIdx.x);
}

template <class Element>
bool launch_append(const DecodeParams& params, const DecodePlan& plan, bool to_ring,
                   const Launch& launch) {
  const int64_t parts = (params.cache.seqlen_new + kAppendTokens - 1) / kAppendTokens;
  const int64_t full_heads = params.mask.full_heads(), all = params.shape.nheads_k;
  const int64_t heads = to_ring ? all - full_heads : params.cache.ring.slots ? full_heads : all;
  const int64_t ctas = parts * heads * params.shape.batch;
  if (ctas == 0) return false;
  check_size("append: new tokens x heads x batch", ctas, kMaxCtas);
  start("append: launch", append_kernel<Element>, ctas, kMostTokenChunks, 0, launch, params, plan,
        int(heads), to_ring);
  return true;
}

}  // namespace diffattn::cuda::decoding
