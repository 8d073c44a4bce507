// Backward, first half: a block of query rows against all its keys. It recomputes both maps from
// the LSE, sums D1 and D2 over whole rows, so that neither O nor O2 is needed, and then forms what the
// second half multiplies: dS1, dS2 and A = P1 - λ·P2.
//   D_c = Σ_j P_c·dP     dS1 = P1·(dP - D1)     dS2 = -λ·P2·(dP - D2)     dλ = -D2
// With a soft cap dS_c is multiplied by the slope of S_c.
// Of a group dS2 is the sum over its signals. P2 is computed once, and what it is multiplied by is summed, so that
// the noise's products are formed once.
#pragma once
#include "../shared/norm.h"
#include "../shared/packed.h"
#include "../shared/softcap.h"
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
  alignas(kLine) C noise_sum[kMostRows];  // of a group: Σ λ·D2
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
  // rows: of a group. dweight [dv]: this block's part of the norm weight's gradient, or null.
  BackwardRows(const BwdParams& p, const RowBlock& rows, const PackedHead<P>& kv,
               GradBlock<P>& block, BackwardScratch<P>& scratch, C* dweight)
      : p_(p),
        group_(rows),
        rows_(rows),
        kv_(kv),
        block_(block),
        x_(scratch),
        dweight_(dweight),
        mask_(p.mask, rows_.sequence, rows.kv_head),
        visible_(mask_, rows.rows, block.lanes) {
    block.rows = rows.rows;
    block.blocks = visible_.blocks;
  }

  // With grads, the second half follows at once, block of keys by block of keys, and what it reads never
  // leaves the cache; without, it is left in the panels, or of a group in those of each map.
  void run(const Gradients<C>* grads) {
    for (int64_t r = 0; r < count(); ++r) x_.noise_sum[r] = 0;
    load_signal(0);
    block_.maps = p_.groups.signals > 1 || noise_counts() ? 2 : 1;
    if (block_.maps == 2) load_map(kNoise, p_.maps[kNoise].q, p_.maps[kNoise].lse);
    if (p_.groups.signals > 1)
      run_group(grads);
    else if (block_.maps == 2)
      run_pair<Part::pair>(grads);
    else
      run_pair<Part::alone>(grads);
  }

 private:
  template <Part part>
  void run_pair(const Gradients<C>* grads) {
    visible_.blocks.for_each([&](const KeyBlock& keys) { recompute<part>(keys); });
    finish_sums(0);
    multiply<part>(grads);
    store_dq(kSignal, p_.map_grads[kSignal].dq);
    store_dq(kNoise, p_.map_grads[kNoise].dq);
  }

  void run_group(const Gradients<C>* grads) {
    for (int64_t i = 0; i < p_.groups.signals; ++i) {
      if (i > 0) load_signal(i);
      visible_.blocks.for_each([&](const KeyBlock& keys) {
        if (i == 0) {
          clear_noise(keys);
          recompute<Part::pair>(keys);
        } else {
          recompute<Part::signal>(keys);
        }
      });
      finish_sums(i);
      multiply<Part::signal>(grads, i);
      store_dq(kSignal, of_signal(p_.map_grads[kSignal].dq, gradient_type<C>(p_), i, p_.groups.dq));
    }
    for (int64_t r = 0; r < count(); ++r) x_.dsum[kNoise][r] = x_.noise_sum[r] + dlse(kNoise, 0, r);
    multiply<Part::noise>(grads, p_.groups.signals);
    store_dq(kNoise, p_.map_grads[kNoise].dq);
  }

  // map: of a group, a signal or for the number behind the last the noise.
  template <Part part>
  void multiply(const Gradients<C>* grads, int64_t map = 0) {
    constexpr int kLast = part == Part::alone ? kNoise : kLastMap<part>;  // of what is stored
    for (int c = kFirstMap<part>; c <= kLast; ++c)
      __builtin_memset(x_.dq + c * lanes() * ldq(), 0, lanes() * ldq() * sizeof(C));
    visible_.blocks.for_each([&](const KeyBlock& keys) {
      const KeyPanels<T> to = grads ? in_place<P>(of_one_block()) : left_by<part>(map, keys);
      if (p_.softcap > 0)
        score_gradients<part, true>(keys, to);
      else
        score_gradients<part, false>(keys, to);
      accumulate_dq<part>(keys, to);
      if (grads) accumulate_keys<P, part>(p_, mask_, block_, to, keys, *grads);
    });
  }

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
  template <Part part>
  KeyPanels<T> left_by(int64_t map, const KeyBlock& keys) const {
    if constexpr (part == Part::signal || part == Part::noise)
      return block_.left_by(map, keys.interval, keys.keys.begin);
    else
      return in_place<P>(panels(keys));
  }

  void load_signal(int64_t i) {
    rows_.head = group_.head * p_.groups.signals + i;
    place_ = block_.signals > 1 ? i : 0;
    load_map(kSignal, of_signal(p_.maps[kSignal].q, p_.dtype, i, p_.groups.q),
             of_signal(p_.maps[kSignal].lse, kComputeType<C>, i, p_.groups.lse));
    load_gradients();
    for (int64_t r = 0; r < lanes(); ++r) {
      x_.lam[r] = r < count() ? number<C>(p_.lam, rows_.offset(p_.lam, row(r))) : 0;
      x_.dsum[kSignal][r] = x_.dsum[kNoise][r] = 0;
    }
  }

  // The LSE in log2 units; 0 where a row sees nothing, for its scores are -inf and must give P = 0.
  void load_map(int c, const View& q, const View& lse) {
    load_queries(p_.dtype, q, group_, d(), x_.natural.get());
    transpose<P>(x_.natural, count(), lanes(), d(), x_.query + c * lanes() * d() / P::kPer);
    steps_of_rows<P>(x_.natural, count(), d(), block_.q + block_.rows_of(c, place_) * ldq());
    for (int64_t r = 0; r < lanes(); ++r) {
      const bool seen = !visible_.of_row[r].empty();
      x_.lse[c][r] = seen ? number<C>(lse, group_.offset(lse, row(r))) * kLog2e<C> : 0;
    }
  }

  void load_gradients() {
    load_queries(p_.dtype, p_.dout, rows_, dv(), x_.natural.get());
    for (int64_t r = 0; r < count(); ++r) {
      C rstd = 1;
      if (p_.norm.eps >= 0) {
        load_row(p_.dtype, p_.o.data, rows_.offset(p_.o, row(r)), dv(), x_.o.get());
        rstd = number<C>(p_.rstd, rows_.offset(p_.rstd, row(r)));
      }
      C* dy = x_.natural + r * ldv();
      if (p_.norm.eps >= 0)
        norm_backward(p_.norm, dv(), x_.o.get(), rstd, dy, dweight_);
      else
        for (int64_t n = 0; n < dv(); ++n) dy[n] *= C(p_.norm.scale);
    }
    transpose<P>(x_.natural, count(), lanes(), dv(), x_.dout.get());
    steps_of_rows<P>(x_.natural, count(), dv(),
                     block_.dout + block_.rows_of(kSignal, place_) * ldv());
  }

  // Whether the noise map gives anything. Where D2 is known (partial), a λ of 0 without a gradient of its LSE says
  // that dS2 is 0, and A is P1: so each map of components gets a backward of its own, for 14d flop per pair.
  bool noise_counts() const {
    if (!p_.partial) return true;
    for (int64_t r = 0; r < count(); ++r)
      if (x_.lam[r] != 0 || dlse(kNoise, 0, r) != 0) return true;
    return false;
  }

  // A score exceeds the LSE by rounding only. Beyond 2^24, where an fp32 LSE has lost log(sum), that is
  // whole units, and P would exceed 1, or overflow. A NaN passes.
  static V at_most_zero(V x) {
    const V zero = {};
    return zero < x ? zero : x;
  }

  // P of maps from the signal's to the last, and dP, of a block of keys, and its part of D1 and D2.
  template <Part part>
  void recompute(const KeyBlock& block) {
    constexpr int kLast = kLastMap<part>, kSums = part == Part::alone ? 1 : 2;
    const int64_t n = block.keys.size(), place = kv_.place(block);
    const KeyPanels<C> scores = of_one_block(), of_keys = panels(block);
    const Panel<C> dout_v = of_keys[2];
    const Tile seen = x_.mask.set(visible_, lanes(), block);
    const int64_t k_steps = d() / P::kPer, ldk = leading<C>(k_steps);
    for (int c = kSignal; c <= kLast; ++c) {
      product_to_panel<P>(n, k_steps, {kv_.k_rows[c] + place * ldk, ldk, 1},
                          x_.query + c * lanes() * k_steps, x_.mask.seen, score_factor<C>(p_),
                          scores[c]);
      if (p_.softcap > 0) {
        const Panel<C> slopes = slopes_of(c, of_keys);
        cap_scores(
            scores[c], x_.mask.seen, p_.softcap,
            [&](int64_t key, int64_t r, const V& slope) { S::store(slopes[key] + r, slope); });
        if (seen != Tile::full) x_.mask.hide(slopes, C(0));  // where K may hold anything
      }
    }
    const int64_t v_steps = dv() / P::kPer, ld = leading<C>(v_steps);
    product_to_panel<P>(n, v_steps, {kv_.v_rows + place * ld, ld, 1}, x_.dout.get(), x_.mask.seen,
                        1, dout_v);
    if (seen != Tile::full) {
      for (int c = kSignal; c <= kLast; ++c) x_.mask.hide(scores[c], -kInf<C>);
      x_.mask.hide(dout_v, C(0));
    }
    const C *from[2] = {scores[0].data, scores[1].data}, *dp = dout_v.data;
    C* const to[2] = {of_keys[0].data, of_keys[1].data};
    for (int64_t r0 = 0; r0 < lanes(); r0 += NR<C>) {
      const Range keys = x_.mask.seen[r0 / NR<C>];
      V sums[kSums][NV] = {};
      for (int64_t i = keys.begin * lanes() + r0; i < keys.end * lanes(); i += lanes()) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          const int64_t at = i + v * S::W, r = r0 + v * S::W;
          V e[kSums];
          for (int c = 0; c < kSums; ++c)  // a group's P2 is there already
            e[c] = c > kLast
                       ? S::load(to[c] + at)
                       : exp2<C>(at_most_zero(S::load(from[c] + at) - S::load(x_.lse[c] + r)));
          const V g = S::load(dp + at);
          for (int c = 0; c < kSums; ++c) {
            if (c <= kLast) S::store(to[c] + at, e[c]);
            sums[c][v] += e[c] * g;
          }
        }
      }
      for (int c = 0; c < kSums; ++c)
        for (int v = 0; v < NV; ++v) {
          C* const sum = x_.dsum[c] + r0 + v * S::W;
          S::store(sum, S::load(sum) + sums[c][v]);
        }
    }
  }

  // dλ, and in dsum what is added to dP: the LSE's own gradient enters a score's with P_c.
  //   dS1 = P1·(dP - D1 + dLSE1)     dS2 = P2·(-λ·dP + λ·D2 + dLSE2)
  void finish_sums(int64_t signal) {
    for (int64_t r = 0; r < count(); ++r) {
      const C of_lse[2] = {dlse(kSignal, signal, r), dlse(kNoise, 0, r)};
      if (p_.partial) {  // D of all keys is in dlse already; this part has not seen it all
        x_.dsum[0][r] = of_lse[0];
        x_.dsum[1][r] = of_lse[1];
        continue;
      }
      put<C>(p_.dlam, rows_.offset(p_.dlam, row(r)), -x_.dsum[1][r]);
      x_.dsum[0][r] = of_lse[0] - x_.dsum[0][r];
      x_.noise_sum[r] += x_.lam[r] * x_.dsum[1][r];
      x_.dsum[1][r] = of_lse[1] + x_.lam[r] * x_.dsum[1][r];
    }
  }

  // The gradient of a map's LSE.
  C dlse(int c, int64_t signal, int64_t r) const {
    const View& from = p_.map_grads[c].dlse;
    if (!from.data) return 0;
    return number<C>(from, group_.offset(from, row(r)) + signal * p_.groups.dlse);
  }

  Panel<C> slopes_of(int c, const KeyPanels<C>& panels) const {
    return panels[first_slope(p_.groups) + c];
  }

  // dS1, dS2 and A of a vector of lanes of one key, or those that a part has. Of a map alone A is P1.
  struct ScoreGradient {
    V each[3];
  };
  template <Part part, bool kCapped>
  ScoreGradient score_gradient(const KeyPanels<C>& panels, int64_t key, int64_t r) const {
    const auto scale = [&](int c) {
      if constexpr (kCapped)
        return C(p_.softmax_scale) * S::load(slopes_of(c, panels)[key] + r);
      else
        return C(p_.softmax_scale);
    };
    const V sum1 = S::load(x_.dsum[0] + r), e1 = S::load(panels[0][key] + r);
    const V g = S::load(panels[2][key] + r), ds1 = scale(kSignal) * e1 * (g + sum1);
    if constexpr (part == Part::alone) return {{ds1, V{}, e1}};
    const V lam = S::load(x_.lam + r), sum2 = S::load(x_.dsum[1] + r);
    const V e2 = S::load(panels[1][key] + r), a = e1 - lam * e2;
    if constexpr (part == Part::pair) return {{ds1, scale(kNoise) * e2 * (sum2 - lam * g), a}};
    C* const noise = panels[3][key] + r;
    if constexpr (part == Part::noise)
      return {{V{}, scale(kNoise) * e2 * (sum2 + S::load(noise)), V{}}};
    S::store(noise, S::load(noise) - lam * g);
    return {{ds1, V{}, a}};
  }
  template <Part part>
  static constexpr bool has(int i) {
    return part == Part::pair || (i == kNoise) == (part == Part::noise);
  }

  template <Part part, bool kCapped>
  void score_gradients(const KeyBlock& block, const KeyPanels<T>& to) {
    const int64_t n = block.keys.size();
    const KeyPanels<C> from = panels(block);
    for (int64_t r0 = 0; r0 < lanes(); r0 += NR<C>)
      for (int64_t key = 0; key < n; key += P::kPer)
#pragma GCC unroll 2
        for (int64_t r = r0; r < r0 + NR<C>; r += S::W) {
          const ScoreGradient first = score_gradient<part, kCapped>(from, key, r);
          if constexpr (P::kPer == 1) {
            for (int i = 0; i < 3; ++i)
              if (has<part>(i)) S::store(to[i][key] + r, first.each[i]);
          } else {
            const bool whole = key + 1 < n;
            const auto second =
                whole ? score_gradient<part, kCapped>(from, key + 1, r) : ScoreGradient{};
            for (int i = 0; i < 3; ++i)
              if (has<part>(i)) store_pairs(to[i], i, key, r, whole, first, second);
          }
        }
  }

  // The sum of -λ·dP begins.
  void clear_noise(const KeyBlock& block) {
    __builtin_memset(panels(block)[3].data, 0, block.keys.size() * lanes() * sizeof(C));
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

  template <Part part>
  void accumulate_dq(const KeyBlock& block, const KeyPanels<T>& panels) {
    const int64_t j = block.keys.begin;
    Range seen[kMostRows];
    for (int64_t r = 0; r < count(); ++r) seen[r] = visible_.in_block(r, block);
    for (int c = kFirstMap<part>; c <= kLastMap<part>; ++c)
      product_over_ranges<P>(count(), d(), seen, j,
                             {P::kPer == 1 ? panels[c].data : pairs_of_keys(c), 1, lanes()},
                             {kv_.k_steps[c] + kv_.place(block) / P::kPer * ldq(), 0, ldq()},
                             {x_.dq + c * lanes() * ldq(), ldq()});
  }

  void store_dq(int c, const View& dq) {
    for (int64_t r = 0; r < count(); ++r)
      store_row(gradient_type<C>(p_), x_.dq + (c * lanes() + r) * ldq(), d(), dq.data,
                group_.offset(dq, row(r)));
  }

  const BwdParams& p_;
  const RowBlock group_;
  RowBlock rows_;      // of the head of the signal at hand
  int64_t place_ = 0;  // of that signal among those that the block leaves
  const PackedHead<P>& kv_;
  GradBlock<P>& block_;
  BackwardScratch<P>& x_;
  C* const dweight_;
  const SequenceMask mask_;
  const VisibleKeys visible_;
};

}  // namespace
}  // namespace diffattn::cpu
