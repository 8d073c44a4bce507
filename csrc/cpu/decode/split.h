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

// What is known of each row of each map after some of the keys: O_c·sum is not yet divided.
template <class C>
struct Partial {
  C *max, *sum;  // [2·rows]   max in log2 units; row m of component c is at c·rows + m
  C* out;        // [2·rows][leading(dv)]

  static int64_t size(int64_t rows, int64_t dv) {
    return 2 * rows * leading<C>(dv) + round_up(4 * rows, NR<C>);
  }
  Partial(int64_t rows, int64_t dv, C* data)
      : max(data + 2 * rows * leading<C>(dv)), sum(max + 2 * rows), out(data) {}
};

template <class C>
struct DecodeScratch {
  Buffer<C> q;     // [heads][2][rows][leading(d)]
  Buffer<C> k, v;  // [kTile][leading(d)], [kTile][leading(dv)]
  Buffer<C> p;     // [heads][2·rows][kTile]

  // heads: KV heads that are decoded together
  DecodeScratch(const Shape& s, int64_t rows, int64_t heads)
      : q(heads * 2 * rows * leading<C>(s.headdim)),
        k(kTile * leading<C>(s.headdim)),
        v(kTile * leading<C>(s.headdim_v)),
        p(heads * 2 * rows * kTile) {}
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
        group_(p.shape.nheads / p.shape.nheads_k),
        rows_(group_ * s.seqlen_q),
        partial_(partial),
        q_(scratch.q + place * 2 * rows_ * ldq()),
        probs_(scratch.p + place * 2 * rows_ * kTile),
        x_(scratch) {
    for (int64_t r = 0; r < 2 * rows_; ++r) {
      partial_.max[r] = -kInf<C>;
      partial_.sum[r] = 0;
    }
    __builtin_memset(partial_.out, 0, 2 * rows_ * ldv() * sizeof(C));
    load_queries();
  }

  // A tile of keys is added in two steps: its scores become 2^(score - max), then they are
  // multiplied with V. between() is called after each piece of arithmetic, which makes this many calls:
  int64_t score_pieces() const {
    return 2 * rows_ * ceil_div(kTile, S::W) * (padded<C>(d()) / NR<C>);
  }
  int64_t value_pieces() const { return ceil_div(dv(), NR<C>) * (rows_ == 1 ? kTile / 2 : 1); }

  template <class F>
  void score(const KeyTile& tile, const F& between) {
    const Range keys = tile.keys;
    const int64_t each = 2 * rows_ / p_.shape.k_components;  // rows that share a row of K
    for (int64_t c = 0; c < p_.shape.k_components; ++c)
      read(p_.maps[c].k_cache, keys, d(), x_.k, [&](auto reader, const auto& k) {
        for (int64_t r = c * each; r < (c + 1) * each; ++r)
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
    for (int64_t r = 0; r < 2 * rows_; ++r) softmax(r, tile);
  }

  template <class F>
  void add_values(const KeyTile& tile, const F& between) {
    const Range keys = tile.keys;
    Range seen[2 * kDecodeRows];
    for (int64_t r = 0; r < 2 * rows_; ++r) seen[r] = visible(r, tile);
    read(p_.v_cache, keys, dv(), x_.v, [&](auto reader, const auto& v) {
      if (rows_ == 1) {  // of both maps, which see the same
        const int64_t skip = seen[0].begin - keys.begin;
        product_of_two_rows<C>(reader, padded<C>(dv()), seen[0].size(), {probs_ + skip, kTile},
                               rows_from(v, skip), {partial_.out, ldv()}, between);
      } else if constexpr (std::is_same_v<decltype(v), const Rows<const C>&>) {
        for (int64_t n = 0; n < dv(); n += NR<C>) {
          product_over_ranges<Numbers<C>>(2 * rows_, NR<C>, seen, keys.begin, {probs_, kTile, 1},
                                          {v.data + n, 0, v.stride}, {partial_.out + n, ldv()});
          between();
        }
      }
    });
  }

  // After the last tile.
  void finish() {
    if (!in_pairs(dv())) return;
    for (int64_t r = 0; r < 2 * rows_; ++r) from_pairs(padded<C>(dv()), partial_.out + r * ldv());
  }

 private:
  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldq() const { return leading<C>(d()); }
  int64_t ldv() const { return leading<C>(dv()); }

  // Whether rows of n numbers are read where they lie, not through scratch: if they are whole
  // vectors at equal distances. Where many query rows read them, 16-bit ones are better converted once.
  bool in_place(int64_t n) const {
    const Paging& paging = p_.cache.paging;
    const bool native = size_of(p_.dtype) == sizeof(C);
    return n % NR<C> == 0 && (native || rows_ == 1) &&
           (!paging.block_table || paging.page_size % kTile == 0);
  }
  bool in_pairs(int64_t n) const { return in_place(n) && p_.dtype == DType::bf16; }

  // Row m is row m / group of query head kv_head·group + m % group.
  void load_queries() {
    const C factor = score_factor<C>(p_);
    for (int c = 0; c < 2; ++c)
      for (int64_t m = 0; m < rows_; ++m) {
        const int64_t i = m / group_;
        const RowBlock row{s_, kv_head_ * group_ + m % group_, kv_head_, {i, i + 1}};
        C* q = q_ + (c * rows_ + m) * ldq();
        cpu::load_queries(p_.dtype, p_.maps[c].q, row, d(), q);
        if (p_.cache.rotary.cos) rotate_rows(p_, p_.cache, row, q);
        for (int64_t i = 0; i < d(); ++i) q[i] *= factor;
        if (in_pairs(d())) to_pairs(d(), q);
      }
  }

  // Calls f(reader, rows) for the tile's rows of keys or values, n numbers each.
  template <class F>
  void read(const View& view, Range keys, int64_t n, C* scratch, const F& f) const {
    const KeyRows rows{view, p_.cache, s_, head_in_keys_};
    if (!in_place(n)) {
      load_keys(p_.dtype, rows, keys, n, scratch);
      return f(Whole<C>{}, Rows<const C>{scratch, leading<C>(n)});
    }
    const void* first =
        element(p_.dtype, static_cast<const void*>(view.data), rows.offset(keys.begin));
    with_reader<C>(p_.dtype, [&](auto reader) {
      using T = const typename decltype(reader)::T;
      f(reader, Rows<T>{static_cast<T*>(first), view.row});
    });
  }

  Range visible(int64_t r, const KeyTile& tile) const {
    return meet(mask_.keys_of(r % rows_ / group_).each[tile.interval], tile.keys);
  }

  // The scores of row r (of either component) become 2^(score - max); what was summed before is
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
  const int64_t kv_head_, head_in_keys_, group_, rows_;
  const Partial<C> partial_;
  C *const q_, *const probs_;  // [2][rows][leading(d)], [2·rows][kTile]
  DecodeScratch<C>& x_;
};

}  // namespace
}  // namespace diffattn::cpu
