// Steps over the ring that streaming heads may have for a cache (`Ring` in diffattn.h).
#pragma once
#include "../shared/mask.h"
#include "../shared/schedule.h"

namespace diffattn::cpu {
namespace {

// A step as heads of one kind see it: those that stream have the ring for a cache, if there is one.
inline DecodeParams with_own_cache(const DecodeParams& p, const Heads& heads) {
  DecodeParams own = p;
  if (!p.cache.ring.slots) return own;
  if (!heads.streaming) {
    own.cache.ring = {};
    return own;
  }
  for (CachedMap& map : own.maps) map.k_cache = map.k_stream;
  own.v_cache = p.v_stream;
  own.cache.paging = {};
  return own;
}

// Keys that a sequence has room for.
inline int64_t slots_of(const DecodeParams& p) {
  const Ring& ring = p.cache.ring;
  return ring.slots ? ring.sink_slots + ring.slots : p.shape.seqlen_k;
}

// The window of all rows together.
inline int64_t window_of_step(const DecodeParams& p) { return p.mask.left + p.shape.seqlen_q; }

// Whether the new keys would take slots of keys that early rows of the same step see.
inline bool overwrites_itself(const DecodeParams& p) {
  return p.cache.ring.slots && p.cache.seqlen_new > 0 && p.cache.ring.slots < window_of_step(p);
}

// A ring for one step, long enough for the windows of all its rows, with what the shorter one has of them.
class LongerRing {
 public:
  LongerRing(const DecodeParams& p, const Heads& heads, const Parallel& parallel)
      : heads_(heads.count),
        k_bytes_(p.shape.headdim * size_of(p.dtype)),
        v_bytes_(p.shape.headdim_v * size_of(p.dtype)),
        p_(p) {
    p_.cache.ring.slots = round_up(window_of_step(p), kBlock);
    p_.cache.batch_idx = nullptr;
    const int64_t rows = product(p.shape.batch, slots_of(p_), heads_);
    k_.reset(new Buffer<char>(product(rows, p.shape.k_components, k_bytes_)));
    v_.reset(new Buffer<char>(product(rows, v_bytes_)));
    for (int64_t c = 0; c < 2; ++c)
      p_.maps[c].k_cache = view(*k_ + (c < p.shape.k_components ? c * k_bytes_ : 0),
                                p.shape.k_components * p.shape.headdim, p.shape.headdim);
    p_.v_cache = view(*v_, p.shape.headdim_v, p.shape.headdim_v);
    for_each(parallel, p.shape.batch, [&](int64_t b, int) { copy_seen_keys(p, b); });
  }

  const DecodeParams& params() const { return p_; }

 private:
  static constexpr int64_t kBlock = 16;

  // [batch, slot, head, ..], rows of n numbers, a head's `head` apart
  View view(char* data, int64_t head, int64_t n) const {
    return {data, slots_of(p_) * heads_ * head, heads_ * head, head, n / 2};
  }

  void copy_seen_keys(const DecodeParams& from, int64_t b) const {
    const Sequence own = sequence(from.shape, Varlen{}, from.cache, b);
    const Sequence longer = sequence(p_.shape, Varlen{}, p_.cache, b);
    const Range cached{0, own.seqlen_k - from.cache.seqlen_new};
    const Range sinks = meet(cached, {0, from.mask.sink});
    const Range window =
        meet(cached, {max(sinks.end, own.seqlen_k - window_of_step(from)), own.seqlen_k});
    for (const Range keys : {sinks, window})
      for (int64_t j = keys.begin; j < keys.end; ++j)
        for (int64_t head = 0; head < heads_; ++head) {
          const auto copy = [&](const View& source, const View& to, int64_t n) {
            const int64_t row = KeyRows{source, from.cache, own, head}.offset(j);
            const int64_t slot = KeyRows{to, p_.cache, longer, head}.offset(j);
            for_pieces(source, n, [&](int64_t col, int64_t at, int64_t count) {
              __builtin_memcpy(element(from.dtype, to.data, slot + col),
                               element(from.dtype, static_cast<const void*>(source.data), row + at),
                               count * size_of(from.dtype));
            });
          };
          for (int64_t c = 0; c < from.shape.k_components; ++c)
            copy(from.maps[c].k_cache, p_.maps[c].k_cache, from.shape.headdim);
          copy(from.v_cache, p_.v_cache, from.shape.headdim_v);
        }
  }

  const int64_t heads_, k_bytes_, v_bytes_;
  DecodeParams p_;
  std::unique_ptr<Buffer<char>> k_, v_;
};

}  // namespace
}  // namespace diffattn::cpu
