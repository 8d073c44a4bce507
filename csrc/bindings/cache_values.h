// Lengths, indices and pages of a cache, where they can be read: on the CPU always, on CUDA for a
// sync.
#pragma once
#include "kvcache.h"

namespace diffattn::bindings {

// The index tensors are in host memory.
inline void check_sequence(const KvCache& c, int64_t b) {
  const int64_t capacity = c.shape.seqlen_k, appended = c.seqlen_new();
  const int64_t cached = c.seqlens ? int32_data(c.seqlens)[b] : capacity;
  check(cached >= 0 && cached + appended <= capacity, "cache_seqlens[", b, "] is ", cached,
        ", accepted: 0 to ", capacity - appended, " (the cache holds ", capacity, ", ", appended,
        " are appended)");
  const int64_t pad = c.leftpad ? int32_data(c.leftpad)[b] : 0;
  check(pad >= 0 && pad <= cached, "cache_leftpad[", b, "] is ", pad,
        ", accepted: 0 to cache_seqlens[", b, "] = ", cached);
  if (c.batch_idx) {
    const int64_t index = int32_data(c.batch_idx)[b];
    check(index >= 0 && index < c.k_cache.size(0), "cache_batch_idx[", b, "] is ", index,
          ", accepted: 0 to ", c.k_cache.size(0) - 1);
  }
  if (c.block_table) {
    const int32_t* pages = int32_data(c.block_table) + b * c.block_table->stride(0);
    for (int64_t n = pad / c.page_size(); n * c.page_size() < cached + appended; ++n)
      check(pages[n] >= 0 && pages[n] < c.k_cache.size(0), "block_table[", b, ", ", n, "] is ",
            pages[n], ", accepted: 0 to ", c.k_cache.size(0) - 1);
  }
  if (c.cos)
    check(cached + appended <= c.cos->size(0) &&
              cached + c.shape.seqlen_q <= c.cos->size(0) + (appended ? 0 : c.shape.seqlen_q),
          "rotary_cos has ", c.cos->size(0), " positions, sequence ", b, " needs ",
          cached + (appended > c.shape.seqlen_q ? appended : c.shape.seqlen_q));
}

inline void check_values(KvCache c) {
  const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
  for (OptionalTensor* t : {&c.seqlens, &c.batch_idx, &c.leftpad, &c.block_table})
    if (*t) *t = torch::stable::to(**t, host);
  for (int64_t b = 0; b < c.shape.batch; ++b) check_sequence(c, b);
}

}  // namespace diffattn::bindings
