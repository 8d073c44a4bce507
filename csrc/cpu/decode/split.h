// Decoding, first half: a few query rows of one KV head against a part of its keys. Every cached
// number is read once for both maps and for all query heads of the group. Keys are not packed: the
// products read the cache in place where they can.
#pragma once
#include <type_traits>

#include "../shared/mask.h"
#include "../shared/packed.h"
#include "../shared/softcap.h"
#include "dots.h"
#include "prefetch.h"
#include "two_rows.h"

namespace diffattn::cpu {
namespace {

constexpr int64_t kDecodeRows = 64;  // most query rows (of all heads of a group) of this path
constexpr int64_t kTile = 16;        // keys of a tile

// Keys of one interval of the rows that see them: a split, or at most kTile of it.
struct KeyTile {
  int interval;
  Range keys;
};

// The query rows of one KV head. Row m of the signals is row m / signals_each of head m % signals_each; behind them
// are the noise's, one for each group of maps. A row of q and a head make one row here.
struct MapRows {
  int64_t signals;       // of a group
  int64_t signals_each;  // of all groups, in each row of q
  int64_t rows, all;     // of the signals, and with the noise

  MapRows(const Shape& s, const Groups& groups)
      : signals(groups.signals),
        signals_each(s.nheads / s.nheads_k),
        rows(signals_each * s.seqlen_q),
        all(rows + rows / signals) {}

  int64_t first(int map) const { return map == kSignal ? 0 : rows; }
  int64_t end(int map) const { return map == kSignal ? rows : all; }
  int map_of(int64_t r) const { return r < rows ? kSignal : kNoise; }
  // The noise's of a signal's row.
  int64_t noise_of(int64_t m) const { return rows + m / signals; }
  int64_t query_row(int64_t r) const {
    return r < rows ? r / signals_each : (r - rows) / (signals_each / signals);
  }
  // The group of a row, counted over all KV heads.
  int64_t group(int64_t r, int64_t kv_head) const {
    const int64_t groups = signals_each / signals;
    return kv_head * groups + (r < rows ? r % signals_each / signals : (r - rows) % groups);
  }
};

// What is known of each row of each map after some of the keys: O_c·sum is not yet divided.
template <class C>
struct Partial {
  C *max, *sum;  // [rows]   max in log2 units
  C* out;        // [rows][leading(dv)]

  // rows: of all maps
  static int64_t size(int64_t rows, int64_t dv) {
    return rows * leading<C>(dv) + round_up(2 * rows, NR<C>);
  }
  Partial(int64_t rows, int64_t dv, C* data)
      : max(data + rows * leading<C>(dv)), sum(max + rows), out(data) {}
};

template <class C>
struct DecodeScratch {
  Buffer<C> q;     // [heads][rows][leading(d)]
  Buffer<C> k, v;  // [kTile][leading(d)], [kTile][leading(dv)]
  Buffer<C> p;     // [heads][rows][kTile]

  // rows: of all maps; heads: KV heads that are decoded together
  DecodeScratch(const Shape& s, int64_t rows, int64_t heads)
      : q(heads * rows * leading<C>(s.headdim)),
        k(kTile * leading<C>(s.headdim)),
        v(kTile * leading<C>(s.headdim_v)),
        p(heads * rows * kTile) {}
};

template <class C>
class DecodeSplit {
  using S = Simd<C>;

 public:
  // The place among the run of heads that are decoded together says which part of the scratch is its own.
  DecodeSplit(const DecodeParams& p, const Sequence& s, const Run& run, int64_t place,
              Partial<C> partial, DecodeScratch<C>& scratch)
      : p_(p),
        s_(s),
        mask_(p.mask, s, run[place]),
        kv_head_(run[place]),
        head_in_keys_(run.in_keys(place)),
        rows_(p.shape, p.groups),
        partial_(partial),
        q_(scratch.q + place * rows_.all * ldq()),
        probs_(scratch.p + place * rows_.all * kTile),
        x_(scratch) {
    for (int64_t r = 0; r < rows_.all; ++r) {
      partial_.max[r] = -kInf<C>;
      partial_.sum[r] = 0;
    }
    __builtin_memset(partial_.out, 0, rows_.all * ldv() * sizeof(C));
    load_queries();
  }

  // A tile of keys is added in two steps: its scores become 2^(score - max), then they are
  // multiplied with V. between() is called after each piece of arithmetic, which makes this many calls:
  int64_t score_pieces() const {
    return rows_.all * ceil_div(kTile, S::W) * (padded<C>(d()) / NR<C>);
  }
  int64_t value_pieces() const { return ceil_div(dv(), NR<C>) * (is_pair() ? kTile / 2 : 1); }

  template <class F>
  void score(const KeyTile& tile, const F& between) {
    const Range keys = tile.keys;
    const bool shared = p_.shape.k_components == 1;  // all rows read the same K
    for (int c = 0; c < p_.shape.k_components; ++c)
      read(p_.maps[c].k_cache, keys, d(), x_.k, [&](auto reader, const auto& k, int64_t, int64_t) {
        for (int64_t r = rows_.first(c), end = shared ? rows_.all : rows_.end(c); r < end; ++r)
          for (int64_t j = 0; j < keys.size(); j += S::W) {
            const C* q = q_ + r * ldq();
            C* out = probs_ + r * kTile + j;
            if (keys.size() - j >= S::W)
              dots<true>(reader, padded<C>(d()), q, rows_from(k, j), S::W, out, between);
            else
              dots<false>(reader, padded<C>(d()), q, rows_from(k, j), keys.size() - j, out,
                          between);
          }
      });
    for (int64_t r = 0; r < rows_.all; ++r) softmax(r, tile);
  }

  template <class F>
  void add_values(const KeyTile& tile, const F& between) {
    const Range keys = tile.keys;
    Range seen[2 * kDecodeRows];
    for (int64_t r = 0; r < rows_.all; ++r) seen[r] = visible(r, tile);
    read(p_.v_cache, keys, dv(), x_.v, [&](auto reader, const auto& v, int64_t col, int64_t width) {
      if (is_pair()) {  // both see the same
        const int64_t skip = seen[0].begin - keys.begin;
        product_of_two_rows<C>(reader, padded<C>(width), seen[0].size(), {probs_ + skip, kTile},
                               rows_from(v, skip), {partial_.out + col, ldv()}, between);
      } else if constexpr (std::is_same_v<decltype(v), const Rows<const C>&>) {
        for (int64_t n = 0; n < width; n += NR<C>) {
          product_over_ranges<Numbers<C>>(rows_.all, NR<C>, seen, keys.begin, {probs_, kTile, 1},
                                          {v.data + n, 0, v.stride},
                                          {partial_.out + col + n, ldv()});
          between();
        }
      }
    });
  }

  // After the last tile.
  void finish() {
    if (!in_pairs(longest_piece(p_.v_cache, dv()))) return;
    for (int64_t r = 0; r < rows_.all; ++r) from_pairs(padded<C>(dv()), partial_.out + r * ldv());
  }

 private:
  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldq() const { return leading<C>(d()); }
  int64_t ldv() const { return leading<C>(dv()); }

  // One row of one pair of maps.
  bool is_pair() const { return rows_.all == 2; }

  // Whether rows of n numbers are read where they lie, not through scratch: if they are whole
  // vectors at equal distances. Where many query rows read them, 16-bit ones are better converted once.
  bool in_place(int64_t n) const {
    const Paging& paging = p_.cache.paging;
    const bool native = size_of(p_.dtype) == sizeof(C);
    return n % NR<C> == 0 && (native || is_pair()) &&
           (!paging.block_table || paging.page_size % kTile == 0);
  }
  bool in_pairs(int64_t n) const { return in_place(n) && p_.dtype == DType::bf16; }

  void load_queries() {
    const C factor = score_factor<C>(p_);
    for (int64_t r = 0; r < rows_.all; ++r) {
      const int64_t i = rows_.query_row(r);
      const RowBlock row{s_, rows_.group(r, kv_head_), kv_head_, {i, i + 1}};
      const int map = rows_.map_of(r);
      const int64_t signal = map == kSignal ? r % rows_.signals : 0;
      const View from = of_signal(p_.maps[map].q, p_.dtype, signal, p_.groups.q);
      C* q = q_ + r * ldq();
      cpu::load_queries(p_.dtype, from, row, d(), q);
      if (p_.cache.rotary.cos) rotate_rows(p_, p_.cache, row, q);
      for (int64_t i = 0; i < d(); ++i) q[i] *= factor;
      if (in_pairs(d())) to_pairs(d(), q);
    }
  }

  // Calls f(reader, rows, column, width) for the tile's rows of keys or values, n numbers each, or for what lies
  // together of them.
  template <class F>
  void read(const View& view, Range keys, int64_t n, C* scratch, const F& f) const {
    const KeyRows rows{view, p_.cache, s_, head_in_keys_};
    if (!in_place(longest_piece(view, n))) {
      load_keys(p_.dtype, rows, keys, n, scratch);
      return f(Whole<C>{}, Rows<const C>{scratch, leading<C>(n)}, 0, n);
    }
    with_reader<C>(p_.dtype, [&](auto reader) {
      using T = const typename decltype(reader)::T;
      for_pieces(view, n, [&](int64_t col, int64_t at, int64_t count) {
        const void* first =
            element(p_.dtype, static_cast<const void*>(view.data), rows.offset(keys.begin) + at);
        f(reader, Rows<T>{static_cast<T*>(first), view.row}, col, count);
      });
    });
  }

  Range visible(int64_t r, const KeyTile& tile) const {
    return meet(mask_.keys_of(rows_.query_row(r)).each[tile.interval], tile.keys);
  }

  // The scores of row r become 2^(score - max); what was summed before is
  // scaled to the new maximum.
  void softmax(int64_t r, const KeyTile& tile) {
    const Range whole{tile.keys.begin, tile.keys.begin + kTile}, seen = visible(r, tile);
    const Tile mine = tile_of(seen, whole);
    if (mine == Tile::hidden) return;
    C* p = probs_ + r * kTile;
    if (p_.softcap > 0)
      for (int64_t j = 0; j < kTile; j += S::W)
        S::store(p + j, cap_factor<C>(p_.softcap) * tanh_of<C>(S::load(p + j)).value);
    if (mine == Tile::partial)
      for (int64_t j = 0; j < kTile; ++j) {
        const int64_t key = whole.begin + j;
        if (key < seen.begin || key >= seen.end) p[j] = -kInf<C>;
      }
    typename S::V tops = S::set(-kInf<C>);
    for (int64_t j = 0; j < kTile; j += S::W) tops = S::max(tops, S::load(p + j));
    const C top = Lanes<C>::max(tops), old = partial_.max[r];
    const C max = top > old ? top : old;
    const typename S::V shift = S::set(max == -kInf<C> ? 0 : max);
    typename S::V total = {};
    for (int64_t j = 0; j < kTile; j += S::W) {
      const auto e = exp2<C>(S::load(p + j) - shift);
      S::store(p + j, e);
      total += e;
    }
    if (max > old) rescale(r, exp2<C>(S::set(old - max))[0]);
    partial_.max[r] = max;
    partial_.sum[r] += Lanes<C>::sum(total);
  }

  void rescale(int64_t r, C factor) {
    partial_.sum[r] *= factor;
    for (int64_t n = 0; n < dv(); ++n) partial_.out[r * ldv() + n] *= factor;
  }

  const DecodeParams& p_;
  const Sequence& s_;
  const SequenceMask mask_;
  const int64_t kv_head_, head_in_keys_;
  const MapRows rows_;
  const Partial<C> partial_;
  C *const q_, *const probs_;  // [rows][leading(d)], [rows][kTile], of all maps
  DecodeScratch<C>& x_;
};

}  // namespace
}  // namespace diffattn::cpu
