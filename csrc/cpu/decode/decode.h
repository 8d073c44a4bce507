// Decoding over a KV cache: append, then the keys in splits, then one combination of the splits in
// which each map is merged first and λ subtracted only after. Long queries go to forward. Each kind of heads is
// decoded by itself, from its part of the caches or from a ring of its own.
#pragma once
#include <vector>

#include "../fwd/forward.h"
#include "append.h"
#include "prefetch.h"
#include "ring.h"
#include "split.h"

namespace diffattn::cpu {
namespace {

// Keys of a split, from shapes alone, so that results do not depend on threads or lengths.
inline int64_t split_size(const DecodeParams& p) {
  constexpr int64_t kSmallest = 1024, kMostItems = 1024;
  const int64_t units = p.shape.batch * p.shape.nheads_k, most = ceil_div(kMostItems, units);
  const int64_t slots = slots_of(p), keys_in_all = slots > 0 ? slots : 1;
  const int64_t asked = p.num_splits < keys_in_all ? p.num_splits : keys_in_all;
  const int64_t wanted = asked > 0 ? asked : most;
  const int64_t keys = round_up(ceil_div(slots, wanted), kTile);
  return p.num_splits == 0 && keys < kSmallest ? kSmallest : keys < kTile ? kTile : keys;
}

// A sequence's splits lie at multiples of their size. Those between intervals are left out: split n is the
// n-th that an interval has keys in.
inline KeyTile keys_of_split(const Intervals& seen, int64_t size, int64_t n) {
  for (int interval = 0; interval < kIntervals; ++interval) {
    const Range all = seen.each[interval];
    const int64_t first = all.begin / size, count = ceil_div(all.end, size) - first;
    const int64_t begin = (first + n) * size;
    if (n < count) return {interval, meet(all, {begin, begin + size})};
    n -= count;
  }
  return {0, {0, 0}};
}

// Merges the splits of the maps of a KV head, and writes outputs and LSEs.
template <class C, class PartialOf>
class Combination {
 public:
  // sums [2][leading(dv)] is scratch.
  Combination(const DecodeParams& p, const Sequence& s, int64_t kv_head, int64_t splits,
              const PartialOf& partial, C* sums)
      : p_(p),
        s_(s),
        kv_head_(kv_head),
        splits_(splits),
        partial_(partial),
        mask_(p.mask, s, kv_head),
        rows_(p.shape, p.groups),
        signal_(sums),
        noise_(sums + leading<C>(p.shape.headdim_v)) {}

  // Signals of one group follow each other, so that the noise is merged for the first of them.
  void run() {
    for (int64_t m = 0; m < rows_.rows; ++m) {
      const int64_t nth = m % rows_.signals;
      if (nth == 0) merge(rows_.noise_of(m), 0, noise_);
      merge(m, nth, signal_);
      if (!p_.maps[kSignal].o.data) subtract(m);
    }
  }

 private:
  int64_t dv() const { return p_.shape.headdim_v; }
  bool sees_keys(int64_t i) const { return !mask_.keys_of(i).empty(); }

  // Row r, of the n-th signal of its group or of the noise.
  void merge(int64_t r, int64_t nth, C* out) {
    const int64_t i = rows_.query_row(r), ld = leading<C>(dv());
    const RowBlock row{s_, rows_.group(r, kv_head_), kv_head_, {i, i + 1}};
    const bool seen = sees_keys(i);
    C max = -kInf<C>, total = 0;
    for (int64_t n = 0; n < splits_; ++n) {
      const C other = partial_(n).max[r];
      max = other > max ? other : max;
    }
    for (int64_t x = 0; x < dv(); ++x) out[x] = 0;
    for (int64_t n = 0; n < splits_; ++n) {
      const Partial<C> part = partial_(n);
      if (part.max[r] == -kInf<C> && part.sum[r] == 0) continue;  // it saw no key
      const C weight = exp2<C>(Simd<C>::set(part.max[r] - max))[0];
      total += weight * part.sum[r];
      for (int64_t x = 0; x < dv(); ++x) out[x] += weight * part.out[r * ld + x];
    }
    for (int64_t x = 0; x < dv(); ++x) out[x] = seen ? out[x] / total : 0;
    const CachedMap& map = p_.maps[rows_.map_of(r)];
    const View lse = of_signal(map.lse, kComputeType<C>, nth, p_.groups.lse);
    put<C>(lse, row.offset(lse, i), seen ? max * kLn2<C> + std::log(total) : -kInf<C>);
    if (!map.o.data) return;
    const View o = of_signal(map.o, kComputeType<C>, nth, p_.groups.o);
    store_row(kComputeType<C>, out, dv(), o.data, row.offset(o, i));
  }

  void subtract(int64_t m) {
    const int64_t i = rows_.query_row(m), each = rows_.signals_each;
    const RowBlock row{s_, kv_head_ * each + m % each, kv_head_, {i, i + 1}};
    // of a row without keys 0, because λ may be NaN
    const C lam = sees_keys(i) ? number<C>(p_.lam, row.offset(p_.lam, i)) : 0;
    for (int64_t x = 0; x < dv(); ++x) signal_[x] -= lam * noise_[x];
    apply_norm(p_.norm, dv(), signal_);
    store_row(p_.dtype, signal_, dv(), p_.out.data, row.offset(p_.out, i));
  }

  const DecodeParams& p_;
  const Sequence& s_;
  const int64_t kv_head_, splits_;
  const PartialOf& partial_;
  const SequenceMask mask_;
  const MapRows rows_;
  C *const signal_, *const noise_;  // [leading(dv)]
};

// KV heads that one worker decodes together: as many as leave a tile of them, and the next, in cache,
// if the rest is work enough for all threads.
inline int64_t heads_together(const Shape& s, int64_t heads_in_all, int64_t items, int threads) {
  constexpr int64_t kTileBytes = 128 << 10;
  if (items < 2 * threads) return 1;
  const int64_t bytes = kTile * (s.k_components * s.headdim + s.headdim_v) * int64_t(sizeof(float));
  int64_t heads = heads_in_all;
  while (heads > 1 && (heads * bytes > kTileBytes || heads_in_all % heads)) --heads;
  return heads;
}

// All KV heads of one kind.
template <class C>
class Decode {
 public:
  Decode(const DecodeParams& p, const Heads& heads, const Parallel& parallel)
      : p_(p),
        heads_(heads),
        parallel_(parallel),
        rows_(MapRows(p.shape, p.groups).all),
        split_(split_size(p)),
        splits_(most_blocks(p.shape, p.mask, heads.streaming, p.shape.seqlen_q, split_)),
        together_(heads_together(p.shape, heads.count, p.shape.batch * splits_, parallel.threads)),
        partials_(product(p.shape.batch, heads.count, splits_, partial_size())),
        sums_(parallel.threads * sums_size()),
        scratch_(parallel.threads, p.shape, rows_, together_) {}

  void run() {
    const int64_t batch = p_.shape.batch;
    const int64_t runs = heads_.count / together_;
    for_each(parallel_, batch * splits_ * runs, [&](int64_t item, int worker) {
      const int64_t n = item % splits_, rest = item / splits_;
      const Run run{heads_, rest / batch * together_, together_};
      read(rest % batch, run, n, scratch_[worker]);
    });
    for_each(parallel_, batch * heads_.count, [&](int64_t item, int worker) {
      const int64_t b = item / heads_.count, nth = item % heads_.count;
      const Sequence s = sequence(p_.shape, Varlen{}, p_.cache, b);
      const auto part = [&](int64_t n) { return partial(b, nth, n); };
      Combination<C, decltype(part)>(p_, s, heads_[nth], splits_, part,
                                     sums_ + worker * sums_size())
          .run();
    });
  }

 private:
  int64_t partial_size() const { return Partial<C>::size(rows_, p_.shape.headdim_v); }
  int64_t sums_size() const { return 2 * leading<C>(p_.shape.headdim_v); }
  Partial<C> partial(int64_t b, int64_t nth_head, int64_t n) const {
    const int64_t at = (b * heads_.count + nth_head) * splits_ + n;
    return {rows_, p_.shape.headdim_v, partials_ + at * partial_size()};
  }

  // Reads the keys of split n for a run of KV heads. Their rows lie side by side in the cache, so that a
  // tile of all of them is one stretch of memory. While K is read, V of the same tile is asked for, and while
  // V is read, K of the next.
  void read(int64_t b, const Run& run, int64_t n, DecodeScratch<C>& scratch) const {
    const Sequence s = sequence(p_.shape, Varlen{}, p_.cache, b);
    std::vector<DecodeSplit<C>> heads;
    heads.reserve(run.count);
    for (int64_t h = 0; h < run.count; ++h)
      heads.emplace_back(p_, s, run, h, partial(b, run.first + h, n), scratch);
    const SequenceMask mask(p_.mask, s, run[0]);
    const KeyTile split = keys_of_split(mask.keys_of(Range{0, s.seqlen_q}), split_, n);
    const Range keys = split.keys;
    // Lines to ask for after each piece, so that all have been asked for when they are needed.
    const Shape& shape = p_.shape;
    const int k_lines = lines(shape.k_components * shape.headdim, heads[0].value_pieces());
    const int v_lines = lines(shape.headdim_v, heads[0].score_pieces());
    const View &k_cache = p_.maps[kSignal].k_cache, &v_cache = p_.v_cache;
    const auto k_stretches =
        stretches(k_cache, run, shape.k_components * shape.headdim, key_span());
    const auto v_stretches =
        stretches(v_cache, run, shape.headdim_v, v_cache.half + shape.headdim_v / 2);
    // Tiles start at multiples of kTile, so that none crosses the end of a page of whole tiles.
    for (int64_t j = keys.begin - keys.begin % kTile; j < keys.end; j += kTile) {
      const KeyTile tile{split.interval, meet({j, j + kTile}, keys)};
      const Range next = meet({j + kTile, j + 2 * kTile}, keys);
      Prefetch v = prefetch({v_cache, p_.cache, s, run.in_keys(0)}, tile.keys, v_stretches);
      for (auto& head : heads) head.score(tile, [&] { v.fetch(v_lines); });
      Prefetch k = prefetch({k_cache, p_.cache, s, run.in_keys(0)}, next, k_stretches);
      for (auto& head : heads) head.add_values(tile, [&] { k.fetch(k_lines); });
    }
    for (auto& head : heads) head.finish();
  }

  // Cache lines of a tile's rows of n numbers for each of so many pieces of arithmetic.
  int lines(int64_t n, int64_t pieces) const {
    return int(ceil_div(kTile * n * size_of(p_.dtype), kLine * pieces));
  }

  // Pages smaller than a tile are left to the hardware.
  Prefetch prefetch(const KeyRows& rows, Range keys, const std::vector<Range>& stretches) const {
    const Paging& paging = rows.cache.paging;
    const bool small = paging.block_table && paging.page_size % kTile;
    if (keys.size() == 0 || small || stretches.empty()) return {};
    return {p_.dtype, rows, keys, stretches};
  }

  // From the first number of a key's signal map to the last of its noise map.
  int64_t key_span() const {
    const auto* signal = static_cast<const char*>(p_.maps[kSignal].k_cache.data);
    const auto* noise = static_cast<const char*>(p_.maps[kNoise].k_cache.data);
    return (noise - signal) / size_of(p_.dtype) + p_.shape.headdim;
  }

  const DecodeParams& p_;
  const Heads heads_;
  const Parallel parallel_;
  const int64_t rows_, split_, splits_, together_;
  const Buffer<C> partials_, sums_;
  Workers<DecodeScratch<C>> scratch_;
};

inline FwdParams as_forward(const DecodeParams& p) {
  FwdParams f{};
  f.dtype = p.dtype;
  f.shape = p.shape;
  for (int c = 0; c < 2; ++c)
    f.maps[c] = {p.maps[c].q, p.maps[c].k_cache, p.maps[c].lse, p.maps[c].o};
  f.v = p.v_cache;
  f.lam = p.lam;
  f.out = p.out;
  f.softmax_scale = p.softmax_scale;
  f.softcap = p.softcap;
  f.mask = p.mask;
  f.norm = p.norm;
  f.groups = p.groups;
  return f;
}

// All rows of the query heads of these KV heads.
template <class P>
void attend(const DecodeParams& p, const Heads& heads, const Parallel& parallel) {
  const Shape& s = p.shape;
  if (s.batch == 0 || s.seqlen_q == 0) return;
  if (s.nheads / s.nheads_k * s.seqlen_q <= kDecodeRows)
    return Decode<typename P::C>(p, heads, parallel).run();
  const FwdParams f = as_forward(p);
  forward_heads<P>(f, {f.shape, f.varlen, p.cache, f.mask, heads, Reader::forward}, parallel);
}

template <class P>
void decode(const DecodeParams& p, const Parallel& all) {
  using C = typename P::C;
  const bool apart = p.cache.ring.slots;
  const auto each_kind = [&](const auto& f) {
    const auto of_kind = [&](const Heads& heads) {
      const DecodeParams own = with_own_cache(p, heads);
      Shape work = own.shape;
      work.seqlen_k = slots_of(own);
      f(own, heads, threads_for(all, work));
    };
    for_each_kind(p.mask, p.shape.nheads_k, of_kind, apart);
  };
  each_kind([](const DecodeParams& own, const Heads& heads, const Parallel& parallel) {
    if (!overwrites_itself(own)) append<C>(own, heads, parallel);
  });
  each_kind([](const DecodeParams& own, const Heads& heads, const Parallel& parallel) {
    if (!overwrites_itself(own)) return attend<P>(own, heads, parallel);
    const LongerRing longer(own, heads, parallel);
    append<C>(longer.params(), heads, parallel);
    attend<P>(longer.params(), heads, parallel);
    append<C>(own, heads, parallel);
  });
}

}  // namespace
}  // namespace diffattn::cpu
