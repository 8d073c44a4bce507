// Keys and values of one KV head in the compute type, packed once for all rows that read them.
#pragma once
#include "rows.h"
#include "schedule.h"

namespace diffattn::cpu {
namespace {

template <class C>
struct PackedHead {
  C *k[2], *v;  // [sk][leading(d)], [sk][leading(dv)]

  static int64_t size(const Shape& s) {
    return product(s.seqlen_k, s.k_components * leading<C>(s.headdim) + leading<C>(s.headdim_v));
  }

  PackedHead(const Shape& s, C* data) {
    k[0] = data;
    k[1] = data + (s.k_components - 1) * s.seqlen_k * leading<C>(s.headdim);
    v = k[1] + s.seqlen_k * leading<C>(s.headdim);
  }

  template <class Params>
  void load(const Params& p, const Cache& cache, const Sequence& s, int64_t head,
            Range keys) const {
    const int64_t d = p.shape.headdim, dv = p.shape.headdim_v;
    const int64_t k_at = keys.begin * leading<C>(d), v_at = keys.begin * leading<C>(dv);
    for (int c = 0; c < p.shape.k_components; ++c)
      load_keys(p.dtype, {p.k, cache.paging, s, head, c}, keys, d, k[c] + k_at);
    load_keys(p.dtype, {p.v, cache.paging, s, head, 0}, keys, dv, v + v_at);
  }
};

// KV heads first .. first + count of the problem, worked on together.
struct Wave {
  int64_t first, count;
};

// How many of `units` equal parts fit a budget; at least one, also of none.
inline int64_t wave_size(int64_t units, int64_t bytes, int64_t budget) {
  const int64_t fit = bytes ? budget / bytes : units;
  const int64_t most = fit < units ? fit : units;
  return most < 1 ? 1 : most;
}

// Calls f(unit, sequence, head, keys) for all keys of a wave in pieces, spread over all threads.
template <class Params, class F>
void for_each_key_range(const Params& p, const Cache& cache, const Parallel& parallel,
                        const Wave& wave, const F& f) {
  constexpr int64_t kPiece = 512;
  const int64_t pieces = ceil_div(p.shape.seqlen_k, kPiece), heads = p.shape.nheads_k;
  for_each(parallel, wave.count * pieces, [&](int64_t item, int) {
    const int64_t unit = item / pieces, j = item % pieces * kPiece;
    const Sequence s = sequence(p.shape, p.varlen, cache, (wave.first + unit) / heads);
    f(unit, s, (wave.first + unit) % heads, meet({j, j + kPiece}, {s.leftpad, s.sk}));
  });
}

}  // namespace
}  // namespace diffattn::cpu
