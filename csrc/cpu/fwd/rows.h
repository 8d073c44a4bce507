// Forward: a block of query rows against all its keys at once. Scores of both maps are kept in
// panels [keys][rows], so that the maps are combined before the ONE product with V:
// 8·d flop a visible pair, where two maps apart need 12·d.
#pragma once
#include "../shared/norm.h"
#include "../shared/packed.h"
#include "../shared/softmax.h"

namespace diffattn::cpu {
namespace {

// What one worker needs for a block of rows.
template <class P>
struct ForwardScratch {
  using C = typename P::C;
  using T = typename P::T;
  int64_t lanes, panel_size;
  Buffer<C> natural;           // [lanes][leading(d)]
  Buffer<T> query;             // [comp][lanes / NR][d / kPer][NR]
  Buffer<T> pairs;             // of the combined panel: [kKeys / 2][lanes], absent for numbers
  Buffer<C> scores;            // [kKeys][lanes], so that a panel is written once
  Buffer<C> panel, block_max;  // [comp][keys][lanes], [key block][comp][lanes]
  Buffer<C> out;               // [lanes][leading(dv)]
  alignas(kLine) C max[2][kRows], sum[2][kRows], weight[2][kRows];
  LaneMask<C> mask;

  // keys: the most that its blocks have, in whole blocks
  ForwardScratch(const Shape& s, int64_t lanes, int64_t keys)
      : lanes(lanes),
        panel_size(product(keys, lanes)),
        natural(lanes * leading<C>(s.headdim)),
        query(2 * lanes * s.headdim / P::kPer),
        pairs(P::kPer == 2 ? kKeys / 2 * lanes : 0),
        scores(kKeys * lanes),
        panel(2 * panel_size),
        block_max(2 * panel_size / kKeys),
        out(lanes * leading<C>(s.headdim_v)) {}
};

template <class P>
class ForwardRows {
  using C = typename P::C;
  using T = typename P::T;
  using S = Simd<C>;

 public:
  ForwardRows(const FwdParams& p, const Cache& cache, const RowBlock& rows, const PackedHead<P>& kv,
              ForwardScratch<P>& scratch)
      : p_(p),
        rows_(rows),
        kv_(kv),
        x_(scratch),
        visible_(SequenceMask(p.mask, rows.sequence, rows.kv_head), rows.rows, scratch.lanes) {
    load(cache);
  }

  void run() {
    visible_.blocks.for_each([&](const KeyBlock& block) { score(block); });
    normalize();
    __builtin_memset(x_.out.get(), 0, count() * ldo() * sizeof(C));
    visible_.blocks.for_each(
        [&](const KeyBlock& block) { accumulate_values(block, combine(block)); });
    for (int64_t r = 0; r < count(); ++r) finish(r);
  }

 private:
  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldo() const { return leading<C>(dv()); }
  int64_t count() const { return rows_.rows.size(); }
  int64_t row(int64_t r) const { return rows_.rows.begin + r; }

  T* query(int c) { return x_.query + c * x_.lanes * d() / P::kPer; }
  Panel<C> panel(int c, const KeyBlock& block) {
    return {x_.panel + c * x_.panel_size + block.place * x_.lanes, x_.lanes};
  }
  C* block_max(int c, const KeyBlock& block) {
    return x_.block_max + (block.place / kKeys * 2 + c) * x_.lanes;
  }

  void load(const Cache& cache) {
    for (int c = 0; c < 2; ++c) {
      load_queries(p_.dtype, p_.maps[c].q, rows_, d(), x_.natural.get());
      if (cache.rotary.cos) rotate_rows(p_, cache, rows_, x_.natural.get());
      transpose<P>(x_.natural.get(), count(), x_.lanes, d(), query(c));
      for (int64_t r = 0; r < x_.lanes; ++r) {
        x_.max[c][r] = -kInf<C>;
        x_.sum[c][r] = 0;
      }
    }
  }

  void score(const KeyBlock& block) {
    const int64_t steps = d() / P::kPer, ldk = leading<C>(steps);
    const Tile seen = x_.mask.set(visible_, x_.lanes, block);
    const Panel<C> scores{x_.scores, x_.lanes};
    for (int c = 0; c < 2; ++c) {
      product_to_panel<P>(block.keys.size(), steps,
                          {kv_.k_rows[c] + kv_.place(block) * ldk, ldk, 1}, query(c), x_.mask.seen,
                          score_factor<C>(p_.softmax_scale), scores);
      if (seen != Tile::full) x_.mask.hide(scores, -kInf<C>);
      online_softmax(scores, x_.mask.seen, x_.max[c], x_.sum[c], block_max(c, block),
                     panel(c, block));
    }
  }

  // weight: what 2^(score - max) of each map is multiplied by in O = O1 - λ·O2.
  void normalize() {
    for (int64_t r = 0; r < x_.lanes; ++r) {
      const C lam = r < count() ? number<C>(p_.lam, rows_.offset(p_.lam, row(r))) : 0;
      const bool seen = !visible_.of_row[r].empty();
      x_.weight[0][r] = seen ? 1 / x_.sum[0][r] : 0;
      x_.weight[1][r] = seen ? -lam / x_.sum[1][r] : 0;
    }
  }

  // P1 - λ·P2 of a block of keys, [kKeys / kPer][lanes]: in place of P1, or rounded to pairs of keys. Each
  // block's own maximum is replaced by the row's in passing.
  const T* combine(const KeyBlock& block) {
    const int64_t n = block.keys.size();
    const Panel<C> first = panel(0, block), second = panel(1, block);
    for (int64_t r = 0; r < x_.lanes; r += S::W) {
      typename S::V w[2];
      for (int c = 0; c < 2; ++c) {
        const auto shift = S::load(block_max(c, block) + r) - S::load(x_.max[c] + r);
        // -inf - -inf: no key was seen, in this block or any
        const typename S::V zero = {};
        w[c] = (shift == shift ? exp2<C>(shift) : zero) * S::load(x_.weight[c] + r);
      }
      C* p1 = first.data + r;
      const C* p2 = second.data + r;
      const auto combined = [&](int64_t key) {
        const int64_t i = key * x_.lanes;
        return S::load(p1 + i) * w[0] + S::load(p2 + i) * w[1];
      };
      if constexpr (P::kPer == 1) {
        for (int64_t key = 0; key < n; ++key) S::store(p1 + key * x_.lanes, combined(key));
      } else {
        for (int64_t key = 0; key < n; key += 2) {
          const auto next = key + 1 < n ? P::round(combined(key + 1)) : Halves{};
          P::store(x_.pairs + key / 2 * x_.lanes + r, P::pair(P::round(combined(key)), next));
        }
      }
    }
    if constexpr (P::kPer == 1)
      return first.data;
    else
      return x_.pairs;
  }

  void accumulate_values(const KeyBlock& block, const T* p) {
    Range seen[kRows];
    for (int64_t r = 0; r < count(); ++r) seen[r] = visible_.in_block(r, block);
    const int64_t j = block.keys.begin;
    product_over_ranges<P>(count(), dv(), seen, j, {p, 1, x_.lanes},
                           {kv_.v_steps + kv_.place(block) / P::kPer * ldo(), 0, ldo()},
                           {x_.out, ldo()});
  }

  void finish(int64_t r) {
    const int64_t i = row(r);
    C* row = x_.out + r * ldo();
    for (int c = 0; c < 2; ++c)
      put<C>(
          p_.maps[c].lse, rows_.offset(p_.maps[c].lse, i),
          visible_.of_row[r].empty() ? -kInf<C> : x_.max[c][r] * kLn2<C> + std::log(x_.sum[c][r]));
    if (p_.o.data) store_row(p_.dtype, row, dv(), p_.o.data, rows_.offset(p_.o, i));
    const C rstd = apply_norm(p_.norm, dv(), row);
    if (p_.rstd.data) put<C>(p_.rstd, rows_.offset(p_.rstd, i), rstd);
    store_row(p_.dtype, row, dv(), p_.out.data, rows_.offset(p_.out, i));
  }

  const FwdParams& p_;
  const RowBlock rows_;
  const PackedHead<P>& kv_;
  ForwardScratch<P>& x_;
  const VisibleKeys visible_;
};

}  // namespace
}  // namespace diffattn::cpu
