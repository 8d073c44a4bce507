// New keys and values written behind the cached ones, keys rotated to their positions.
#pragma once
#include "../shared/packed.h"

namespace diffattn::cpu {
namespace {

template <class C>
void append_row(const DecodeParams& p, const View& from, const View& to, const Sequence& s,
                int64_t t, int64_t head, int64_t n, bool rotated, C* row) {
  const Cache& cache = p.cache;
  const int64_t j = s.sk - cache.seqlen_new + t;
  const int64_t at = from.batch * s.b + from.row * t + from.head * head;
  void* slot = element(p.dtype, to.data, KeyRows{to, cache.paging, s, head}.offset(j));
  if (rotated) {
    load_row(p.dtype, from.data, at, n, row);
    rotate(p.dtype, cache.rotary, j, n, row);
    store_row(p.dtype, row, n, slot, 0);
  } else {
    // The new rows may be a view of the cache itself, and lie in their slots already.
    __builtin_memmove(slot, element(p.dtype, static_cast<const void*>(from.data), at),
                      n * size_of(p.dtype));
  }
}

template <class C>
void append(const DecodeParams& p, const Parallel& parallel) {
  const Shape& s = p.shape;
  const int64_t count = p.cache.seqlen_new;
  for_each(parallel, s.batch * count, [&](int64_t item, int) {
    const Sequence seq = sequence(s, Varlen{}, p.cache, item / count);
    const int64_t t = item % count;
    C row[kMostHeaddim];
    for (int64_t head = 0; head < s.nheads_k; ++head) {
      for (int64_t c = 0; c < s.k_components; ++c)
        append_row(p, p.maps[c].k_new, p.maps[c].k_cache, seq, t, head, s.headdim,
                   p.cache.rotary.cos, row);
      append_row(p, p.v_new, p.v_cache, seq, t, head, s.headdim_v, false, row);
    }
  });
}

}  // namespace
}  // namespace diffattn::cpu
