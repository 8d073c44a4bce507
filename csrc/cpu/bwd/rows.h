// Backward, first half: a block of query rows against all its keys. It recomputes both maps from
// the LSE, sums D1 and D2 over whole rows, so that neither O nor O2 is needed, and then forms what the
// second half multiplies: dS1, dS2 and A = P1 - λ·P2.
//   D_c = Σ_j P_c·dP     dS1 = P1·(dP - D1)     dS2 = -λ·P2·(dP - D2)     dλ = -D2
#pragma once
#include "../shared/norm.h"
#include "../shared/packed.h"
#include "../shared/softmax.h"
#include "keys.h"

namespace diffattn::cpu {
namespace {

template <class P>
struct BackwardScratch {
  using C = typename P::C;
  using T = typename P::T;
  Buffer<C> natural;      // [lanes][leading(dv)]
  Buffer<T> query, dout;  // [comp][lanes / NR][d / kPer][NR], [lanes / NR][dv / kPer][NR]
  Buffer<C> block;        // [S1, S2] or [dS1, dS2, A] of a block of keys: [3][kKeys][lanes]
  Buffer<T> pairs;        // of keys, of dS1 and dS2: [2][kKeys / 2][lanes], absent for numbers
  Buffer<C> dq;           // [comp][lanes][leading(d)]
  Buffer<C> o;            // [leading(dv)]
  alignas(kLine) C lse[2][kMostRows], dsum[2][kMostRows], lam[kMostRows];
  LaneMask<C> mask;

  BackwardScratch(const Shape& s, int64_t lanes)
      : natural(lanes * leading<C>(s.headdim_v)),
        query(2 * lanes * s.headdim / P::kPer),
        dout(lanes * s.headdim_v / P::kPer),
        block(3 * kKeys * lanes),
        pairs(P::kPer == 2 ? kKeys * lanes : 0),
        dq(2 * lanes * leading<C>(s.headdim)),
        o(leading<C>(s.headdim_v)) {}
};

template <class P>
class BackwardRows {
  using C = typename P::C;
  using T = typename P::T;
  using S = Simd<C>;
  using V = typename S::V;

 public:
  // dweight [dv]: this block's part of the norm weight's gradient, or null.
  BackwardRows(const BwdParams& p, const RowBlock& rows, const PackedHead<P>& kv,
               GradBlock<P>& block, BackwardScratch<P>& scratch, C* dweight)
      : p_(p),
        rows_(rows),
        kv_(kv),
        block_(block),
        x_(scratch),
        mask_(p.mask, rows_.sequence, rows.kv_head),
        visible_(mask_, rows.rows, block.lanes) {
    block.rows = rows.rows;
    block.blocks = visible_.blocks;
    load_queries();
    load_gradients(dweight);
    load_statistics();
  }

  // With grads, the second half follows at once, block of keys by block of keys, and what it reads never
  // leaves the cache; without, it is left in the panels.
  void run(const Gradients<C>* grads) {
    visible_.blocks.for_each([&](const KeyBlock& keys) { recompute(keys); });
    finish_sums();
    __builtin_memset(x_.dq.get(), 0, 2 * lanes() * ldq() * sizeof(C));
    visible_.blocks.for_each([&](const KeyBlock& keys) {
      const KeyPanels<T> to = in_place<P>(grads ? of_one_block() : panels(keys));
      score_gradients(keys, to);
      accumulate_dq(keys, to);
      if (grads) accumulate_keys(p_, mask_, block_, to, keys, *grads);
    });
    store_dq();
  }

 private:
  int64_t d() const { return p_.shape.headdim; }
  int64_t dv() const { return p_.shape.headdim_v; }
  int64_t ldq() const { return leading<C>(d()); }
  int64_t ldv() const { return leading<C>(dv()); }
  int64_t lanes() const { return block_.lanes; }
  int64_t count() const { return block_.rows.size(); }
  int64_t row(int64_t r) const { return block_.rows.begin + r; }
  KeyPanels<C> panels(const KeyBlock& keys) const {
    return block_.panels(keys.interval, keys.keys.begin);
  }
  KeyPanels<C> of_one_block() const { return {x_.block, kKeys * lanes(), lanes()}; }

  void load_queries() {
    for (int c = 0; c < 2; ++c) {
      cpu::load_queries(p_.dtype, p_.maps[c].q, rows_, d(), x_.natural.get());
      transpose<P>(x_.natural, count(), lanes(), d(), x_.query + c * lanes() * d() / P::kPer);
      steps_of_rows<P>(x_.natural, count(), d(), block_.q + c * lanes() / P::kPer * ldq());
    }
  }

  void load_gradients(C* dweight) {
    cpu::load_queries(p_.dtype, p_.dout, rows_, dv(), x_.natural.get());
    for (int64_t r = 0; r < count(); ++r) {
      C rstd = 1;
      if (p_.norm.eps >= 0) {
        load_row(p_.dtype, p_.o.data, rows_.offset(p_.o, row(r)), dv(), x_.o.get());
        rstd = number<C>(p_.rstd, rows_.offset(p_.rstd, row(r)));
      }
      C* dy = x_.natural + r * ldv();
      if (p_.norm.eps >= 0)
        norm_backward(p_.norm, dv(), x_.o.get(), rstd, dy, dweight);
      else
        for (int64_t n = 0; n < dv(); ++n) dy[n] *= C(p_.norm.scale);
    }
    transpose<P>(x_.natural, count(), lanes(), dv(), x_.dout.get());
    steps_of_rows<P>(x_.natural, count(), dv(), block_.dout.get());
  }

  // lse in log2 units; 0 where a row sees nothing, for its scores are -inf and must give P = 0.
  void load_statistics() {
    for (int64_t r = 0; r < lanes(); ++r) {
      const bool seen = !visible_.of_row[r].empty();
      x_.lam[r] = r < count() ? number<C>(p_.lam, rows_.offset(p_.lam, row(r))) : 0;
      for (int c = 0; c < 2; ++c) {
        const View& lse = p_.maps[c].lse;
        const int64_t at = seen ? rows_.offset(lse, row(r)) : 0;
        x_.lse[c][r] = seen ? number<C>(lse, at) * kLog2e<C> : 0;
        x_.dsum[c][r] = 0;
      }
    }
  }

  // A score exceeds the LSE by rounding only. Beyond 2^24, where an fp32 LSE has lost log(sum), that is
  // whole units, and P would exceed 1, or overflow. A NaN passes.
  static V at_most_zero(V x) {
    const V zero = {};
    return zero < x ? zero : x;
  }

  // P1, P2, dP of a block of keys, and its part of D1 and D2.
  void recompute(const KeyBlock& block) {
    const int64_t n = block.keys.size(), place = kv_.place(block);
    const KeyPanels<C> scores = of_one_block(), of_keys = panels(block);
    const Panel<C> dout_v = of_keys[2];
    const Tile seen = x_.mask.set(visible_, lanes(), block);
    const int64_t k_steps = d() / P::kPer, ldk = leading<C>(k_steps);
    for (int c = 0; c < 2; ++c)
      product_to_panel<P>(n, k_steps, {kv_.k_rows[c] + place * ldk, ldk, 1},
                          x_.query + c * lanes() * k_steps, x_.mask.seen,
                          score_factor<C>(p_.softmax_scale), scores[c]);
    const int64_t v_steps = dv() / P::kPer, ld = leading<C>(v_steps);
    product_to_panel<P>(n, v_steps, {kv_.v_rows + place * ld, ld, 1}, x_.dout.get(), x_.mask.seen,
                        1, dout_v);
    if (seen != Tile::full) {
      for (int c = 0; c < 2; ++c) x_.mask.hide(scores[c], -kInf<C>);
      x_.mask.hide(dout_v, C(0));
    }
    const C *s1 = scores[0].data, *s2 = scores[1].data, *dp = dout_v.data;
    C *p1 = of_keys[0].data, *p2 = of_keys[1].data;
    for (int64_t r0 = 0; r0 < lanes(); r0 += NR<C>) {
      const Range keys = x_.mask.seen[r0 / NR<C>];
      V d1[NV] = {}, d2[NV] = {};
      for (int64_t i = keys.begin * lanes() + r0; i < keys.end * lanes(); i += lanes()) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          const int64_t at = i + v * S::W, r = r0 + v * S::W;
          const V e1 = exp2<C>(at_most_zero(S::load(s1 + at) - S::load(x_.lse[0] + r)));
          const V e2 = exp2<C>(at_most_zero(S::load(s2 + at) - S::load(x_.lse[1] + r)));
          const V g = S::load(dp + at);
          S::store(p1 + at, e1);
          S::store(p2 + at, e2);
          d1[v] += e1 * g;
          d2[v] += e2 * g;
        }
      }
      for (int v = 0; v < NV; ++v) {
        const int64_t r = r0 + v * S::W;
        S::store(x_.dsum[0] + r, S::load(x_.dsum[0] + r) + d1[v]);
        S::store(x_.dsum[1] + r, S::load(x_.dsum[1] + r) + d2[v]);
      }
    }
  }

  // dλ, and in dsum what is added to dP: the LSE's own gradient enters a score's with P_c.
  //   dS1 = P1·(dP - D1 + dLSE1)     dS2 = P2·(-λ·dP + λ·D2 + dLSE2)
  void finish_sums() {
    for (int64_t r = 0; r < count(); ++r) {
      C dlse[2] = {0, 0};
      for (int c = 0; c < 2; ++c)
        if (const View& from = p_.map_grads[c].dlse; from.data)
          dlse[c] = number<C>(from, rows_.offset(from, row(r)));
      put<C>(p_.dlam, rows_.offset(p_.dlam, row(r)), -x_.dsum[1][r]);
      x_.dsum[0][r] = dlse[0] - x_.dsum[0][r];
      x_.dsum[1][r] = dlse[1] + x_.lam[r] * x_.dsum[1][r];
    }
  }

  // dS1, dS2 and A of a vector of lanes of one key.
  struct ScoreGradient {
    V each[3];
  };
  ScoreGradient score_gradient(const KeyPanels<C>& panels, int64_t key, int64_t r) const {
    const C scale = C(p_.softmax_scale);
    const V lam = S::load(x_.lam + r);
    const V sum1 = S::load(x_.dsum[0] + r), sum2 = S::load(x_.dsum[1] + r);
    const V e1 = S::load(panels[0][key] + r), e2 = S::load(panels[1][key] + r);
    const V g = S::load(panels[2][key] + r);
    return {{scale * e1 * (g + sum1), scale * e2 * (sum2 - lam * g), e1 - lam * e2}};
  }

  void score_gradients(const KeyBlock& block, const KeyPanels<T>& to) {
    const int64_t n = block.keys.size();
    const KeyPanels<C> from = panels(block);
    for (int64_t r0 = 0; r0 < lanes(); r0 += NR<C>)
      for (int64_t key = 0; key < n; key += P::kPer)
#pragma GCC unroll 2
        for (int64_t r = r0; r < r0 + NR<C>; r += S::W) {
          const ScoreGradient first = score_gradient(from, key, r);
          if constexpr (P::kPer == 1) {
            for (int i = 0; i < 3; ++i) S::store(to[i][key] + r, first.each[i]);
          } else {
            const bool whole = key + 1 < n;
            const auto second = whole ? score_gradient(from, key + 1, r) : ScoreGradient{};
            for (int i = 0; i < 3; ++i) store_pairs(to[i], i, key, r, whole, first, second);
          }
        }
  }

  // Two keys' numbers rounded, in pairs of lanes for the second half and in pairs of keys for dQ.
  void store_pairs(const Panel<T>& rows, int i, int64_t key, int64_t r, bool whole,
                   const ScoreGradient& first, const ScoreGradient& second) {
    const Halves a = P::round(first.each[i]), b = P::round(second.each[i]);
    const auto store = [&](int64_t key, Halves x) {
      __builtin_memcpy(reinterpret_cast<char*>(rows[key]) + r * 2, &x, sizeof x);
    };
    store(key, a);
    if (whole) store(key + 1, b);
    if (i < 2) P::store(pairs_of_keys(i) + key / 2 * lanes() + r, P::pair(a, b));
  }
  T* pairs_of_keys(int i) const { return x_.pairs + i * kKeys / 2 * lanes(); }

  void accumulate_dq(const KeyBlock& block, const KeyPanels<T>& panels) {
    const int64_t j = block.keys.begin;
    Range seen[kMostRows];
    for (int64_t r = 0; r < count(); ++r) seen[r] = visible_.in_block(r, block);
    for (int c = 0; c < 2; ++c)
      product_over_ranges<P>(count(), d(), seen, j,
                             {P::kPer == 1 ? panels[c].data : pairs_of_keys(c), 1, lanes()},
                             {kv_.k_steps[c] + kv_.place(block) / P::kPer * ldq(), 0, ldq()},
                             {x_.dq + c * lanes() * ldq(), ldq()});
  }

  void store_dq() {
    for (int c = 0; c < 2; ++c)
      for (int64_t r = 0; r < count(); ++r)
        store_row(p_.dtype, x_.dq + (c * lanes() + r) * ldq(), d(), p_.map_grads[c].dq.data,
                  rows_.offset(p_.map_grads[c].dq, row(r)));
  }

  const BwdParams& p_;
  const RowBlock rows_;
  const PackedHead<P>& kv_;
  GradBlock<P>& block_;
  BackwardScratch<P>& x_;
  const SequenceMask mask_;
  const VisibleKeys visible_;
};

}  // namespace
}  // namespace diffattn::cpu
