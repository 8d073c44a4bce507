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
  Limits<C> limits;

  ForwardScratch(const Shape& s, int64_t lanes)
      : lanes(lanes),
        panel_size(cpu::panel_size(s.seqlen_k, lanes)),
        natural(lanes * leading<C>(s.headdim)),
        query(2 * lanes * s.headdim / P::kPer),
        pairs(P::kPer == 2 ? kKeys / 2 * lanes : 0),
        scores(kKeys * lanes),
        panel(2 * panel_size),
        block_max(2 * panel_size / kKeys),
        out(lanes * leading<C>(s.headdim_v)) {}
};

template <class P>
class RowBlock {
  using C = typename P::C;
  using T = typename P::T;
  using S = Simd<C>;

 public:
  RowBlock(const FwdParams& p, const Cache& cache, const Sequence& s, int64_t head, Range rows,
           const PackedHead<P>& kv, ForwardScratch<P>& scratch)
      : p_(p),
        s_(s),
        head_(head),
        rows_(rows),
        kv_(kv),
        x_(scratch),
        sight_(s, p.mask, rows, scratch.lanes),
        keys_(sight_.keys) {
    load(cache);
  }

  void run() {
    for (int64_t j = keys_.begin; j < keys_.end; j += kKeys) score(j);
    normalize();
    __builtin_memset(x_.out.get(), 0, rows_.size() * ldo() * sizeof(C));
    for (int64_t j = keys_.begin; j < keys_.end; j += kKeys) {
      accumulate_values(j, combine(j));
    }
    for (int64_t r = 0; r < rows_.size(); ++r) finish(r);
  }

 private:
  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldo() const { return leading<C>(dv()); }
  C* panel(int c, int64_t j) { return x_.panel + c * x_.panel_size + (j - keys_.begin) * x_.lanes; }
  C* block_max(int c, int64_t j) {
    return x_.block_max + ((j - keys_.begin) / kKeys * 2 + c) * x_.lanes;
  }

  void load(const Cache& cache) {
    for (int c = 0; c < 2; ++c) {
      load_queries(p_.dtype, p_.maps[c].q, s_, head_, rows_, d(), x_.natural.get());
      if (cache.rotary.cos) rotate_rows(p_, cache, s_, rows_, x_.natural.get());
      transpose<P>(x_.natural.get(), rows_.size(), x_.lanes, d(), query(c));
      for (int64_t r = 0; r < x_.lanes; ++r) {
        x_.max[c][r] = -kInf<C>;
        x_.sum[c][r] = 0;
      }
    }
  }

  T* query(int c) { return x_.query + c * x_.lanes * d() / P::kPer; }

  void score(int64_t j) {
    const int64_t n = block_of(keys_, j).size();
    const bool masked = x_.limits.set(sight_.visible, x_.lanes, j, n);
    for (int c = 0; c < 2; ++c) {
      C* scores = x_.scores;
      const int64_t steps = d() / P::kPer, ldk = leading<C>(steps);
      product_to_panel<P>(n, steps, {kv_.k_rows[c] + j * ldk, ldk, 1}, query(c), x_.lanes,
                          x_.limits.seen, score_factor<C>(p_.softmax_scale), scores);
      if (masked) x_.limits.mask(scores, x_.lanes, -kInf<C>);
      online_softmax(scores, x_.limits, x_.lanes, x_.max[c], x_.sum[c], block_max(c, j),
                     panel(c, j));
    }
  }

  // weight: what 2^(score - max) of each map is multiplied by in O = O1 - λ·O2.
  void normalize() {
    for (int64_t r = 0; r < x_.lanes; ++r) {
      const bool row = r < rows_.size();
      const C lam = row ? number<C>(p_.lam, offset(p_.lam, s_, rows_.begin + r, head_)) : 0;
      const bool seen = sight_.visible[r].size() > 0;
      x_.weight[0][r] = seen ? 1 / x_.sum[0][r] : 0;
      x_.weight[1][r] = seen ? -lam / x_.sum[1][r] : 0;
    }
  }

  // P1 - λ·P2 of a block of keys, [kKeys / kPer][lanes]: in place of P1, or rounded to pairs of keys. Each
  // block's own maximum is replaced by the row's in passing.
  const T* combine(int64_t j) {
    const int64_t n = block_of(keys_, j).size();
    for (int64_t r = 0; r < x_.lanes; r += S::W) {
      typename S::V w[2];
      for (int c = 0; c < 2; ++c) {
        const auto shift = S::load(block_max(c, j) + r) - S::load(x_.max[c] + r);
        // -inf - -inf: no key was seen, in this block or any
        const typename S::V zero = {};
        w[c] = (shift == shift ? exp2<C>(shift) : zero) * S::load(x_.weight[c] + r);
      }
      C* p1 = panel(0, j) + r;
      const C* p2 = panel(1, j) + r;
      const auto combined = [&](int64_t key) {
        const int64_t i = key * x_.lanes;
        return S::load(p1 + i) * w[0] + S::load(p2 + i) * w[1];
      };
      if constexpr (P::kPer == 1) {
        for (int64_t key = 0; key < n; ++key) S::store(p1 + key * x_.lanes, combined(key));
      } else {
        for (int64_t key = 0; key < n; key += 2) {
          const auto second = key + 1 < n ? P::round(combined(key + 1)) : Halves{};
          P::store(x_.pairs + key / 2 * x_.lanes + r, P::pair(P::round(combined(key)), second));
        }
      }
    }
    if constexpr (P::kPer == 1)
      return panel(0, j);
    else
      return x_.pairs;
  }

  void accumulate_values(int64_t j, const T* p) {
    Range seen[kRows];
    for (int64_t r = 0; r < rows_.size(); ++r)
      seen[r] = meet(sight_.visible[r], block_of(keys_, j));
    product_over_ranges<P>(rows_.size(), dv(), seen, j, {p, 1, x_.lanes},
                           {kv_.v_steps + j / P::kPer * ldo(), 0, ldo()}, x_.out, ldo());
  }

  void finish(int64_t r) {
    const int64_t i = rows_.begin + r;
    C* row = x_.out + r * ldo();
    for (int c = 0; c < 2; ++c)
      put<C>(p_.maps[c].lse, offset(p_.maps[c].lse, s_, i, head_),
             sight_.visible[r].size() ? x_.max[c][r] * kLn2<C> + std::log(x_.sum[c][r]) : -kInf<C>);
    if (p_.o.data) store_row(p_.dtype, row, dv(), p_.o.data, offset(p_.o, s_, i, head_));
    const C rstd = apply_norm(p_.norm, dv(), row);
    if (p_.rstd.data) put<C>(p_.rstd, offset(p_.rstd, s_, i, head_), rstd);
    store_row(p_.dtype, row, dv(), p_.out.data, offset(p_.out, s_, i, head_));
  }

  const FwdParams& p_;
  const Sequence& s_;
  const int64_t head_;
  const Range rows_;
  const PackedHead<P>& kv_;
  ForwardScratch<P>& x_;
  const Sight sight_;
  const Range keys_;
};

}  // namespace
}  // namespace diffattn::cpu
