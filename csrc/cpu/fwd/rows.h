// Forward: a block of query rows against all its keys at once. Scores of both maps are kept in
// panels [keys][rows], so that the maps are combined before the ONE product with V:
// 8·d flop a visible pair, where two maps apart need 12·d. Of a group of r signal maps the noise map is
// computed once, and stays in its panel: (6·r + 2)·d flop.
#pragma once
#include "../shared/norm.h"
#include "../shared/packed.h"
#include "../shared/softcap.h"
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
  alignas(kLine) C rounded_sum[kRows];  // of one map's weights, where its product rounds them
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
  // rows: of a group
  ForwardRows(const FwdParams& p, const Cache& cache, const RowBlock& rows, const PackedHead<P>& kv,
              ForwardScratch<P>& scratch)
      : p_(p),
        cache_(cache),
        group_(rows),
        rows_(rows),
        kv_(kv),
        x_(scratch),
        visible_(SequenceMask(p.mask, rows.sequence, rows.kv_head), rows.rows, scratch.lanes) {}

  void run() {
    load(kNoise, p_.maps[kNoise].q);
    run_signal<kNoise>(0);
    for (int64_t r = 0; r < count(); ++r) store_lse(r, kNoise, p_.maps[kNoise].lse);
    for (int64_t i = 1; i < p_.groups.signals; ++i) run_signal<kSignal>(i);
  }

 private:
  // Scores maps from the signal's to the last, and computes the signal's head.
  template <int kLast>
  void run_signal(int64_t i) {
    rows_.head = group_.head * p_.groups.signals + i;
    load(kSignal, of_signal(p_.maps[kSignal].q, p_.dtype, i, p_.groups.q));
    visible_.blocks.for_each([&](const KeyBlock& block) { score<kLast>(block); });
    normalize();
    const View lse = of_signal(p_.maps[kSignal].lse, kComputeType<C>, i, p_.groups.lse);
    for (int64_t r = 0; r < count(); ++r) store_lse(r, kSignal, lse);
    if (are_separate()) {
      multiply_values<kSignal, kSignal>();
      store_component(of_signal(p_.maps[kSignal].o, kComputeType<C>, i, p_.groups.o));
      if constexpr (kLast == kSignal) return;  // the noise's is there
      multiply_values<kNoise, kNoise>();
      store_component(p_.maps[kNoise].o);
    } else {
      multiply_values<kSignal, kNoise>();
      for (int64_t r = 0; r < count(); ++r) finish(r);
    }
  }

  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldo() const { return leading<C>(dv()); }
  int64_t count() const { return group_.rows.size(); }
  int64_t row(int64_t r) const { return group_.rows.begin + r; }

  T* query(int c) { return x_.query + c * x_.lanes * d() / P::kPer; }
  Panel<C> panel(int c, const KeyBlock& block) {
    return {x_.panel + c * x_.panel_size + block.place * x_.lanes, x_.lanes};
  }
  C* block_max(int c, const KeyBlock& block) {
    return x_.block_max + (block.place / kKeys * 2 + c) * x_.lanes;
  }

  void load(int c, const View& q) {
    load_queries(p_.dtype, q, group_, d(), x_.natural.get());
    if (cache_.rotary.cos) rotate_rows(p_, cache_, group_, x_.natural.get());
    transpose<P>(x_.natural.get(), count(), x_.lanes, d(), query(c));
    for (int64_t r = 0; r < x_.lanes; ++r) {
      x_.max[c][r] = -kInf<C>;
      x_.sum[c][r] = 0;
    }
  }

  template <int kLast>
  void score(const KeyBlock& block) {
    const int64_t steps = d() / P::kPer, ldk = leading<C>(steps);
    const Tile seen = x_.mask.set(visible_, x_.lanes, block);
    const Panel<C> scores{x_.scores, x_.lanes};
    for (int c = kSignal; c <= kLast; ++c) {
      product_to_panel<P>(block.keys.size(), steps,
                          {kv_.k_rows[c] + kv_.place(block) * ldk, ldk, 1}, query(c), x_.mask.seen,
                          score_factor<C>(p_), scores);
      if (p_.softcap > 0)
        cap_scores(scores, x_.mask.seen, p_.softcap, [](int64_t, int64_t, const auto&) {});
      if (seen != Tile::full) x_.mask.hide(scores, -kInf<C>);
      online_softmax(scores, x_.mask.seen, x_.max[c], x_.sum[c], block_max(c, block),
                     panel(c, block));
    }
  }

  // Whether each map's own result is asked for. That takes a product with V for each map, of 6·d flop with its scores.
  bool are_separate() const { return p_.maps[kSignal].o.data != nullptr; }

  template <int kFirst, int kLast>
  void multiply_values() {
    __builtin_memset(x_.out.get(), 0, count() * ldo() * sizeof(C));
    __builtin_memset(x_.rounded_sum, 0, sizeof x_.rounded_sum);
    visible_.blocks.for_each([&](const KeyBlock& block) {
      const T* const weights = combine<kFirst, kLast>(block);
      if constexpr (kFirst == kLast && P::kPer == 2) sum_rounded(block, weights);
      accumulate_values(block, weights);
    });
  }

  // Adds up one map's rounded weights of a block of keys. They sum to one only if they are divided by this.
  void sum_rounded(const KeyBlock& block, const T* pairs) {
    x_.mask.set(visible_, x_.lanes, block);
    for (int64_t r = 0; r < x_.lanes; r += S::W) {
      const Range keys = x_.mask.seen[r / NR<C>];
      typename S::V sum = S::load(x_.rounded_sum + r);
      for (int64_t key = keys.begin; key < keys.end; ++key) {
        const Bits pair = load_any<Bits>(pairs + key / 2 * x_.lanes + r);
        sum += as_float(key % 2 ? pair & P::kSecond : pair << 16);
      }
      S::store(x_.rounded_sum + r, sum);
    }
  }

  // weight: what 2^(score - max) of each map is multiplied by in O = O1 - λ·O2, or in O1 and O2.
  void normalize() {
    for (int64_t r = 0; r < x_.lanes; ++r) {
      const C lam = are_separate() ? C(-1)
                    : r < count()  ? number<C>(p_.lam, rows_.offset(p_.lam, row(r)))
                                   : C(0);
      const bool seen = !visible_.of_row[r].empty();
      x_.weight[0][r] = seen ? 1 / x_.sum[0][r] : 0;
      x_.weight[1][r] = seen ? -lam / x_.sum[1][r] : 0;
    }
  }

  // P1 - λ·P2 of a block of keys, or one of the maps, [kKeys / kPer][lanes]: in place of the first map, or
  // rounded to pairs of keys. Each block's own maximum is replaced by the row's in passing.
  template <int kFirst, int kLast>
  const T* combine(const KeyBlock& block) {
    const int64_t n = block.keys.size();
    const Panel<C> first = panel(kFirst, block), last = panel(kLast, block);
    for (int64_t r = 0; r < x_.lanes; r += S::W) {
      typename S::V w[2];
      for (int c = kFirst; c <= kLast; ++c) {
        const auto shift = S::load(block_max(c, block) + r) - S::load(x_.max[c] + r);
        // -inf - -inf: no key was seen, in this block or any
        const typename S::V zero = {};
        w[c] = (shift == shift ? exp2<C>(shift) : zero) * S::load(x_.weight[c] + r);
      }
      C* p1 = first.data + r;
      const C* p2 = last.data + r;
      const auto combined = [&](int64_t key) {
        const int64_t i = key * x_.lanes;
        const auto sum = S::load(p1 + i) * w[kFirst];
        return kFirst == kLast ? sum : sum + S::load(p2 + i) * w[kLast];
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

  void store_lse(int64_t r, int c, const View& lse) {
    put<C>(lse, group_.offset(lse, row(r)),
           visible_.of_row[r].empty() ? -kInf<C> : x_.max[c][r] * kLn2<C> + std::log(x_.sum[c][r]));
  }

  void store_component(const View& to) {
    for (int64_t r = 0; r < count(); ++r) {
      C* values = x_.out + r * ldo();
      const C sum = x_.rounded_sum[r];
      if (P::kPer == 2 && sum > 0)
        for (int64_t n = 0; n < dv(); ++n) values[n] /= sum;
      store_row(kComputeType<C>, values, dv(), to.data, group_.offset(to, row(r)));
    }
  }

  void finish(int64_t r) {
    const int64_t i = row(r);
    C* row = x_.out + r * ldo();
    if (p_.o.data) store_row(p_.dtype, row, dv(), p_.o.data, rows_.offset(p_.o, i));
    const C rstd = apply_norm(p_.norm, dv(), row);
    if (p_.rstd.data) put<C>(p_.rstd, rows_.offset(p_.rstd, i), rstd);
    store_row(p_.dtype, row, dv(), p_.out.data, rows_.offset(p_.out, i));
  }

  const FwdParams& p_;
  const Cache& cache_;
  const RowBlock group_;
  RowBlock rows_;  // of the head of the signal at hand
  const PackedHead<P>& kv_;
  ForwardScratch<P>& x_;
  const VisibleKeys visible_;
};

}  // namespace
}  // namespace diffattn::cpu
