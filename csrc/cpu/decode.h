// Decoding over a KV cache: append, then the keys in splits, then one combination of the splits in
// which each map is merged first and λ subtracted only after. Long queries go to forward.
#pragma once
#include "append.h"
#include "decode_split.h"
#include "forward.h"

namespace diffattn::cpu {
namespace {

// Keys of a split, from shapes alone, so that results do not depend on threads or lengths.
inline int64_t split_size(const DecodeParams& p) {
  constexpr int64_t kSmallest = 1024, kMostItems = 1024;
  const int64_t units = p.shape.batch * p.shape.nheads_k, most = ceil_div(kMostItems, units);
  const int64_t wanted = p.num_splits > 0 ? p.num_splits : most;
  const int64_t keys = round_up(ceil_div(p.shape.seqlen_k, wanted), kTile);
  return p.num_splits == 0 && keys < kSmallest ? kSmallest : keys < kTile ? kTile : keys;
}

// Merges the splits of row m and writes its output and LSE. sums [2][leading(dv)] is scratch.
template <class C, class PartialOf>
void combine_splits(const DecodeParams& p, const Sequence& s, int64_t kv_head, int64_t m,
                    int64_t splits, const PartialOf& partial, C* sums) {
  const int64_t group = p.shape.nheads / p.shape.nheads_k, rows = group * s.sq;
  const int64_t dv = p.shape.headdim_v, ld = leading<C>(dv);
  const int64_t i = m / group, head = kv_head * group + m % group;
  for (int c = 0; c < 2; ++c) {
    const int64_t r = c * rows + m;
    C max = -kInf<C>, total = 0, *out = sums + c * ld;
    for (int64_t n = 0; n < splits; ++n) {
      const C other = partial(n).max[r];
      max = other > max ? other : max;
    }
    for (int64_t x = 0; x < dv; ++x) out[x] = 0;
    for (int64_t n = 0; n < splits; ++n) {
      const Partial<C> part = partial(n);
      if (part.max[r] == -kInf<C> && part.sum[r] == 0) continue;  // it saw no key
      const C weight = exp2<C>(Simd<C>::set(part.max[r] - max))[0];
      total += weight * part.sum[r];
      for (int64_t x = 0; x < dv; ++x) out[x] += weight * part.out[r * ld + x];
    }
    const bool seen = visible_keys(s, p.window, i).size() > 0;
    for (int64_t x = 0; x < dv; ++x) out[x] = seen ? out[x] / total : 0;
    put<C>(p.lse, offset(p.lse, s, i, head, c), seen ? max * kLn2<C> + std::log(total) : -kInf<C>);
  }
  const C lam = number<C>(p.lam, offset(p.lam, s, i, head));
  for (int64_t x = 0; x < dv; ++x) sums[x] -= lam * sums[ld + x];
  apply_norm(p.norm, dv, sums);
  store_row(p.dtype, sums, dv, p.out.data, offset(p.out, s, i, head));
}

template <class C>
void decode_splits(const DecodeParams& p, const Parallel& parallel) {
  const Shape& s = p.shape;
  const int64_t rows = s.nheads / s.nheads_k * s.seqlen_q, units = s.batch * s.nheads_k;
  const int64_t split = split_size(p), splits = ceil_div(s.seqlen_k, split);
  const int64_t size = Partial<C>::size(rows, s.headdim_v);
  Buffer<C> partials(units * splits * size), sums(parallel.threads * 2 * leading<C>(s.headdim_v));
  Workers<DecodeScratch<C>> scratch(parallel.threads, s, rows);
  const auto partial = [&](int64_t unit, int64_t n) {
    return Partial<C>(rows, s.headdim_v, partials + (unit * splits + n) * size);
  };
  for_each(parallel, units * splits, [&](int64_t item, int worker) {
    const int64_t unit = item / splits, n = item % splits;
    const Sequence seq = sequence(s, Varlen{}, p.cache, unit / s.nheads_k);
    const Range seen =
        meet({visible_keys(seq, p.window, 0).begin, visible_keys(seq, p.window, seq.sq - 1).end},
             {seq.leftpad, seq.sk});
    DecodeSplit<C>(p, seq, unit % s.nheads_k, meet({n * split, n * split + split}, seen),
                   partial(unit, n), scratch[worker])
        .run();
  });
  for_each(parallel, units, [&](int64_t unit, int worker) {
    const Sequence seq = sequence(s, Varlen{}, p.cache, unit / s.nheads_k);
    for (int64_t m = 0; m < rows; ++m)
      combine_splits<C>(
          p, seq, unit % s.nheads_k, m, splits, [&](int64_t n) { return partial(unit, n); },
          sums + worker * 2 * leading<C>(s.headdim_v));
  });
}

inline FwdParams as_forward(const DecodeParams& p) {
  FwdParams f{};
  f.dtype = p.dtype;
  f.shape = p.shape;
  f.q = p.q;
  f.k = p.k_cache;
  f.v = p.v_cache;
  f.lam = p.lam;
  f.out = p.out;
  f.lse = p.lse;
  f.softmax_scale = p.softmax_scale;
  f.window = p.window;
  f.norm = p.norm;
  return f;
}

template <class C>
void decode(const DecodeParams& p, const Parallel& all) {
  const Parallel parallel = threads_for(all, p.shape);
  append<C>(p, parallel);
  if (p.shape.nheads / p.shape.nheads_k * p.shape.seqlen_q <= kDecodeRows)
    decode_splits<C>(p, parallel);
  else
    forward<C>(as_forward(p), p.cache, parallel);
}

}  // namespace
}  // namespace diffattn::cpu
