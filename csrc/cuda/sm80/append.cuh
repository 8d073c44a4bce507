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

// Writes the new tokens first, first + step, .. of one KV head. Those without a slot are dropped.
template <class Element>
__device__ void append_tokens(const DecodeParams& p, const CachedSequence& s, const Pages& pages,
                              int head_k, int first, int step, int thread, int threads) {
  const Rotator<Element> rotator(p.cache.rotary);
  const int k_chunks = int(p.shape.headdim) / kChunk, v_chunks = int(p.shape.headdim_v) / kChunk;
  const int all_k = int(p.shape.k_components) * k_chunks;
  const int end = min(int(p.cache.seqlen_new), s.capacity - s.cached);
  for (int t = first; t < end; t += step) {
    const int key = s.cached + t, page = pages.of(key);
    if (!pages.exists(page)) continue;
    const auto source = [&](const View& v) {
      return s.batch * v.batch + t * v.row + head_k * v.head;
    };
    const auto target = [&](const View& v) { return pages.offset(v, page, key) + head_k * v.head; };
    for (int i = thread; i < all_k + v_chunks; i += threads) {
      const bool is_k = i < all_k;
      const View &from = is_k ? p.k_new : p.v_new, &to = is_k ? p.k_cache : p.v_cache;
      const int comp = is_k ? i / k_chunks : 0;
      const int col = (is_k ? i % k_chunks : i - all_k) * kChunk;
      const auto* row = row_of<const Element>(from, source(from) + comp * from.comp);
      uint4* slot =
          reinterpret_cast<uint4*>(row_of<Element>(to, target(to) + comp * to.comp + col));
      *slot = is_k ? rotator.load(row, col, key) : *reinterpret_cast<const uint4*>(row + col);
    }
  }
}

constexpr int kAppendThreads = 128, kAppendTokens = 4;  // of a CTA

// Appends before the keys are read by another kernel: for prompts, whose rows many CTAs share.
template <class Element>
__global__ void __launch_bounds__(kAppendThreads)
    append_kernel(const __grid_constant__ DecodeParams params) {
  const int heads = int(params.shape.nheads_k);
  const int parts = int((params.cache.seqlen_new + kAppendTokens - 1) / kAppendTokens);
  const CachedSequence sequence(params, blockIdx.x / parts / heads);
  const Pages pages(params, sequence);
  append_tokens<Element>(params, sequence, pages, blockIdx.x / parts % heads, blockIdx.x % parts,
                         parts, threadIdx.x, kAppendThreads);
}

template <class Element>
void launch_append(const DecodeParams& params, cudaStream_t stream) {
  const int64_t parts = (params.cache.seqlen_new + kAppendTokens - 1) / kAppendTokens;
  const int64_t ctas = parts * params.shape.nheads_k * params.shape.batch;
  check_size("append: new tokens x heads x batch", ctas, kMaxCtas);
  append_kernel<Element><<<unsigned(ctas), kAppendThreads, 0, stream>>>(params);
  check(cudaGetLastError(), "append: launch");
}

}  // namespace diffattn::cuda::sm80
