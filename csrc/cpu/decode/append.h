// New keys and values written behind the cached ones, keys rotated to their positions.
#pragma once
#include "../shared/packed.h"

namespace diffattn::cpu {
namespace {

// A new key of one KV head, the t-th of its sequence, and its slot in the cache.
struct NewKey {
  const DecodeParams& p;
  const Sequence& s;
  int64_t t, head;
  int64_t cached_head;  // the same head in the cache

  int64_t number() const { return s.seqlen_k - p.cache.seqlen_new + t; }
  // Padding has no slot in a ring, nor have keys that later ones of the same step would overwrite.
  bool has_slot() const {
    const Ring& ring = p.cache.ring;
    return !ring.slots || (number() >= 0 && keeps(ring, number(), s.seqlen_k));
  }
  const void* source(const View& v) const {
    const int64_t at = v.batch * s.batch + v.row * t + v.head * head;
    return element(p.dtype, static_cast<const void*>(v.data), at);
  }
  void* slot(const View& v) const {
    return element(p.dtype, v.data, KeyRows{v, p.cache, s, cached_head}.offset(number()));
  }

  void move(const View& from, int64_t from_at, const View& to, int64_t to_at, int64_t n) const {
    __builtin_memmove(element(p.dtype, slot(to), to_at), element(p.dtype, source(from), from_at),
                      n * size_of(p.dtype));
  }

  // The new rows may be a view of the cache itself, and lie in their slots already.
  void copy(const View& from, const View& to, int64_t n) const {
    if (longest_piece(from, n) == n && longest_piece(to, n) == n) return move(from, 0, to, 0, n);
    move(from, 0, to, 0, n / 2);
    move(from, from.half, to, to.half, n / 2);
  }

  template <class C>
  void copy_rotated(const View& from, const View& to, int64_t n) const {
    C row[kMostHeaddim];
    load_row(p.dtype, source(from), 0, n, row);
    rotate(p.dtype, p.cache.rotary, s.uncounted + number(), n, row);
    store_row(p.dtype, row, n, slot(to), 0);
  }
};

template <class C>
void append(const DecodeParams& p, const Heads& heads, const Parallel& parallel) {
  const Shape& s = p.shape;
  const int64_t count = p.cache.seqlen_new;
  for_each(parallel, s.batch * count, [&](int64_t item, int) {
    const Sequence seq = sequence(s, Varlen{}, p.cache, item / count);
    for (int64_t nth = 0; nth < heads.count; ++nth) {
      const NewKey key{p, seq, item % count, heads[nth], heads.in_keys(nth)};
      if (!key.has_slot()) return;
      for (int64_t c = 0; c < s.k_components; ++c) {
        const CachedMap& map = p.maps[c];
        if (p.cache.rotary.cos)
          key.copy_rotated<C>(map.k_new, map.k_cache, s.headdim);
        else
          key.copy(map.k_new, map.k_cache, s.headdim);
      }
      key.copy(p.v_new, p.v_cache, s.headdim_v);
    }
  });
}

}  // namespace
}  // namespace diffattn::cpu
