// Decoding, first half: a few query rows of one KV head against a part of its keys. Every cached
// number is read once for both maps and for all query heads of the group. Keys are not packed:
// where the cache holds the compute type, the products read it in place.
#pragma once
#include "dots.h"
#include "packed.h"
#include "softmax.h"

namespace diffattn::cpu {
namespace {

constexpr int64_t kDecodeRows = 64;  // most query rows (of all heads of a group) of this path
constexpr int64_t kTile = 16;        // keys of a tile

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
  Buffer<C> p;     // [2·rows][kTile]

  // heads: KV heads that are decoded together
  DecodeScratch(const Shape& s, int64_t rows, int64_t heads)
      : q(heads * 2 * rows * leading<C>(s.headdim)),
        k(kTile * leading<C>(s.headdim)),
        v(kTile * leading<C>(s.headdim_v)),
        p(2 * rows * kTile) {}
};

template <class C>
class DecodeSplit {
  using S = Simd<C>;

 public:
  // q [2][rows][leading(d)]: room for the queries.
  DecodeSplit(const DecodeParams& p, const Sequence& s, int64_t kv_head, Partial<C> partial, C* q,
              DecodeScratch<C>& scratch)
      : p_(p),
        s_(s),
        kv_head_(kv_head),
        group_(p.shape.nheads / p.shape.nheads_k),
        rows_(group_ * s.sq),
        partial_(partial),
        q_(q),
        x_(scratch),
        scale_(p.softmax_scale) {
    for (int64_t r = 0; r < 2 * rows_; ++r) {
      partial_.max[r] = -kInf<C>;
      partial_.sum[r] = 0;
    }
    __builtin_memset(partial_.out, 0, 2 * rows_ * ldv() * sizeof(C));
    load_queries();
  }

  // Adds the keys of a tile; between() is called after each piece of arithmetic.
  template <class F>
  void add(Range keys, const F& between) {
    for (int c = 0; c < 2; ++c) {
      const bool again = c == 1 && p_.shape.k_components == 1;
      if (!again) k_ = rows_of(p_.k_cache, c, keys, d(), x_.k);
      for (int64_t m = 0; m < rows_; ++m) score(c * rows_ + m, keys, between);
    }
    const Rows v = rows_of(p_.v_cache, 0, keys, dv(), x_.v);
    Range seen[2 * kDecodeRows];
    for (int64_t r = 0; r < 2 * rows_; ++r) seen[r] = visible(r, keys);
    for (int64_t n = 0; n < dv(); n += NR<C>) {
      product_over_ranges<C>(2 * rows_, NR<C>, seen, keys.begin, {x_.p, kTile, 1},
                             {v.data + n, 0, v.stride}, partial_.out + n, ldv());
      between();
    }
  }

 private:
  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldq() const { return leading<C>(d()); }
  int64_t ldv() const { return leading<C>(dv()); }

  // Row m is row m / group of query head kv_head·group + m % group.
  void load_queries() {
    for (int c = 0; c < 2; ++c)
      for (int64_t m = 0; m < rows_; ++m) {
        const Range row{m / group_, m / group_ + 1};
        C* q = q_ + (c * rows_ + m) * ldq();
        cpu::load_queries(p_.dtype, p_.q, s_, kv_head_ * group_ + m % group_, c, row, d(), q);
        if (p_.cache.rotary.cos) rotate_rows(p_, p_.cache, s_, row, q);
        for (int64_t i = 0; i < d(); ++i) q[i] *= scale_.query;
      }
  }

  struct Rows {
    const C* data;
    int64_t stride;
  };

  // The tile's rows of keys or values: in place if they are whole vectors of the compute type at
  // equal distances, else converted.
  Rows rows_of(const View& view, int64_t comp, Range keys, int64_t n, C* scratch) {
    const Paging& paging = p_.cache.paging;
    const KeyRows rows{view, paging, s_, kv_head_, comp};
    const bool native = size_of(p_.dtype) == sizeof(C) && n % NR<C> == 0;
    if (native && (!paging.block_table || paging.page_size % kTile == 0))
      return {static_cast<const C*>(view.data) + rows.offset(keys.begin), view.row};
    load_keys(p_.dtype, rows, keys, n, scratch);
    return {scratch, leading<C>(n)};
  }

  Range visible(int64_t r, Range keys) const {
    return meet(visible_keys(s_, p_.window, r % rows_ / group_), keys);
  }

  // The scores of row r (of either component) become 2^(score - max); what was summed before is
  // scaled to the new maximum.
  template <class F>
  void score(int64_t r, Range keys, const F& between) {
    const Range seen = visible(r, keys);
    if (seen.size() == 0) return;
    C* p = x_.p + r * kTile;
    for (int64_t j = 0; j < keys.size(); j += S::W) {
      dots<C>(round_up(d(), S::W), q_ + r * ldq(), k_.data + j * k_.stride, k_.stride,
              keys.size() - j < S::W ? keys.size() - j : S::W, p + j);
      between();
    }
    const auto factor = S::set(scale_.score * kLog2e<C>);
    if (seen.size() < kTile)
      for (int64_t j = 0; j < kTile; ++j) {
        const int64_t key = keys.begin + j;
        if (key < seen.begin || key >= seen.end) p[j] = -kInf<C>;
      }
    typename S::V tops = S::set(-kInf<C>);
    for (int64_t j = 0; j < kTile; j += S::W) tops = S::max(tops, S::load(p + j));
    tops *= factor;
    C max = partial_.max[r];
    const C old = max;
    for (int i = 0; i < S::W; ++i) max = tops[i] > max ? tops[i] : max;
    const typename S::V shift = S::set(max == -kInf<C> ? 0 : max);
    typename S::V total = {};
    for (int64_t j = 0; j < kTile; j += S::W) {
      const auto e = exp2<C>(S::load(p + j) * factor - shift);
      S::store(p + j, e);
      total += e;
    }
    C sum = 0;
    for (int i = 0; i < S::W; ++i) sum += total[i];
    if (max > old) rescale(r, exp2<C>(S::set(old - max))[0]);
    partial_.max[r] = max;
    partial_.sum[r] += sum;
  }

  void rescale(int64_t r, C factor) {
    partial_.sum[r] *= factor;
    for (int64_t n = 0; n < dv(); ++n) partial_.out[r * ldv() + n] *= factor;
  }

  const DecodeParams& p_;
  const Sequence& s_;
  const int64_t kv_head_, group_, rows_;
  const Partial<C> partial_;
  C* const q_;
  DecodeScratch<C>& x_;
  const Scale<C> scale_;
  Rows k_{};
};

}  // namespace
}  // namespace diffattn::cpu
