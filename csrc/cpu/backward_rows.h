// Backward, first half: a block of query rows against all its keys. It recomputes both maps from
// the LSE, sums D1 and D2 over whole rows, so that neither O nor O2 is needed, and then forms what the
// second half multiplies: dS1, dS2 and A = P1 - λ·P2.
//   D_c = Σ_j P_c·dP     dS1 = P1·(dP - D1)     dS2 = -λ·P2·(dP - D2)     dλ = -D2
#pragma once
#include "backward_keys.h"
#include "norm.h"
#include "packed.h"
#include "softmax.h"

namespace diffattn::cpu {
namespace {

template <class C>
struct BackwardScratch {
  Buffer<C> query, dout;  // [comp][lanes / NR][d][NR], [lanes / NR][dv][NR]
  Buffer<C> block;        // [S1, S2] or [dS1, dS2, A] of a block of keys: [3][kKeys][lanes]
  Buffer<C> dq;           // [comp][lanes][leading(d)]
  Buffer<C> o;            // [leading(dv)]
  alignas(kLine) C lse[2][kMostRows], dsum[2][kMostRows], lam[kMostRows];
  Limits<C> limits;

  BackwardScratch(const Shape& s, int64_t lanes)
      : query(2 * lanes * s.headdim),
        dout(lanes * s.headdim_v),
        block(3 * kKeys * lanes),
        dq(2 * lanes * leading<C>(s.headdim)),
        o(leading<C>(s.headdim_v)) {}
};

template <class C>
class GradRows {
  using S = Simd<C>;
  using V = typename S::V;

 public:
  // dweight [dv]: this block's part of the norm weight's gradient, or null.
  GradRows(const BwdParams& p, const Sequence& s, int64_t head, Range rows, const PackedHead<C>& kv,
           GradBlock<C>& block, BackwardScratch<C>& scratch, C* dweight)
      : p_(p),
        s_(s),
        head_(head),
        kv_(kv),
        block_(block),
        x_(scratch),
        sight_(s, p.window, rows, block.lanes) {
    block.rows = rows;
    block.keys = sight_.keys;
    load_queries();
    load_gradients(dweight);
    load_statistics();
  }

  // With grads, the second half follows at once, block of keys by block of keys, and what it reads never
  // leaves the cache; without, it is left in the panels.
  void run(const PackedHead<C>* grads) {
    const Range keys = block_.keys;
    for (int64_t j = keys.begin; j < keys.end; j += kKeys) recompute(j);
    finish_sums();
    __builtin_memset(x_.dq.get(), 0, 2 * lanes() * ldq() * sizeof(C));
    for (int64_t j = keys.begin; j < keys.end; j += kKeys) {
      const KeyPanels<C> panels =
          grads ? KeyPanels<C>{x_.block, kKeys * lanes()} : block_.panels(j);
      score_gradients(j, panels);
      accumulate_dq(j, panels);
      if (grads) accumulate_keys(p_, s_, block_, panels, block_of(keys, j), *grads);
    }
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

  void load_queries() {
    for (int c = 0; c < 2; ++c) {
      C* natural = block_.q + c * lanes() * ldq();
      cpu::load_queries(p_.dtype, p_.q, s_, head_, c, block_.rows, d(), natural);
      transpose(natural, count(), lanes(), d(), query_factor<C>(p_.softmax_scale),
                x_.query + c * lanes() * d());
    }
  }

  void load_gradients(C* dweight) {
    cpu::load_queries(p_.dtype, p_.dout, s_, head_, 0, block_.rows, dv(), block_.dout.get());
    for (int64_t r = 0; r < count(); ++r) {
      C rstd = 1;
      if (p_.norm.eps >= 0) {
        load_row(p_.dtype, p_.o.data, offset(p_.o, s_, row(r), head_), dv(), x_.o.get());
        rstd = number<C>(p_.rstd, offset(p_.rstd, s_, row(r), head_));
      }
      C* dy = block_.dout + r * ldv();
      if (p_.norm.eps >= 0)
        norm_backward(p_.norm, dv(), x_.o.get(), rstd, dy, dweight);
      else
        for (int64_t n = 0; n < dv(); ++n) dy[n] *= C(p_.norm.scale);
    }
    transpose(block_.dout.get(), count(), lanes(), dv(), C(1), x_.dout.get());
  }

  // lse in log2 units; 0 where a row sees nothing, for its scores are -inf and must give P = 0.
  void load_statistics() {
    for (int64_t r = 0; r < lanes(); ++r) {
      const bool seen = sight_.visible[r].size() > 0;
      x_.lam[r] = r < count() ? number<C>(p_.lam, offset(p_.lam, s_, row(r), head_)) : 0;
      for (int c = 0; c < 2; ++c) {
        const int64_t at = seen ? offset(p_.lse, s_, row(r), head_, c) : 0;
        x_.lse[c][r] = seen ? number<C>(p_.lse, at) * kLog2e<C> : 0;
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
  void recompute(int64_t j) {
    const int64_t n = block_of(block_.keys, j).size();
    const int64_t size = kKeys * lanes();
    C *s1 = x_.block, *s2 = s1 + size;
    const KeyPanels<C> panels = block_.panels(j);
    C *p1 = panels[0], *p2 = panels[1], *dp = panels[2];
    const bool masked = x_.limits.set(sight_.visible, lanes(), j, n);
    for (int c = 0; c < 2; ++c)
      product_to_panel<C>(n, d(), {kv_.k[c] + j * ldq(), ldq(), 1}, x_.query + c * lanes() * d(),
                          lanes(), x_.limits.seen, s1 + c * size);
    product_to_panel<C>(n, dv(), {kv_.v + j * ldv(), ldv(), 1}, x_.dout.get(), lanes(),
                        x_.limits.seen, dp);
    if (masked) {
      x_.limits.mask(s1, lanes(), -kInf<C>);
      x_.limits.mask(s2, lanes(), -kInf<C>);
      x_.limits.mask(dp, lanes(), C(0));
    }
    for (int64_t r0 = 0; r0 < lanes(); r0 += NR<C>) {
      const Range keys = x_.limits.seen[r0 / NR<C>];
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
      for (int c = 0; c < 2 && p_.dlse.data; ++c)
        dlse[c] = number<C>(p_.dlse, offset(p_.dlse, s_, row(r), head_, c));
      put<C>(p_.dlam, offset(p_.dlam, s_, row(r), head_), -x_.dsum[1][r]);
      x_.dsum[0][r] = dlse[0] - x_.dsum[0][r];
      x_.dsum[1][r] = dlse[1] + x_.lam[r] * x_.dsum[1][r];
    }
  }

  void score_gradients(int64_t j, const KeyPanels<C>& to) {
    const int64_t n = block_of(block_.keys, j).size();
    const KeyPanels<C> panels = block_.panels(j);
    const C *p1 = panels[0], *p2 = panels[1], *dp = panels[2];
    C *ds1 = to[0], *ds2 = to[1], *a = to[2];
    const C scale = C(p_.softmax_scale);
    for (int64_t r0 = 0; r0 < lanes(); r0 += NR<C>)
      for (int64_t i = r0; i < n * lanes(); i += lanes()) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          const int64_t at = i + v * S::W, r = r0 + v * S::W;
          const V lam = S::load(x_.lam + r);
          const V sum1 = S::load(x_.dsum[0] + r), sum2 = S::load(x_.dsum[1] + r);
          const V e1 = S::load(p1 + at), e2 = S::load(p2 + at), g = S::load(dp + at);
          S::store(ds1 + at, scale * e1 * (g + sum1));
          S::store(ds2 + at, scale * e2 * (sum2 - lam * g));
          S::store(a + at, e1 - lam * e2);
        }
      }
  }

  void accumulate_dq(int64_t j, const KeyPanels<C>& panels) {
    Range seen[kMostRows];
    for (int64_t r = 0; r < count(); ++r)
      seen[r] = meet(sight_.visible[r], block_of(block_.keys, j));
    for (int c = 0; c < 2; ++c)
      product_over_ranges<C>(count(), d(), seen, j, {panels[c], 1, lanes()},
                             {kv_.k[c] + j * ldq(), 0, ldq()}, x_.dq + c * lanes() * ldq(), ldq());
  }

  void store_dq() {
    for (int c = 0; c < 2; ++c)
      for (int64_t r = 0; r < count(); ++r)
        store_row(p_.dtype, x_.dq + (c * lanes() + r) * ldq(), d(), p_.dq.data,
                  offset(p_.dq, s_, row(r), head_, c));
  }

  const BwdParams& p_;
  const Sequence& s_;
  const int64_t head_;
  const PackedHead<C>& kv_;
  GradBlock<C>& block_;
  BackwardScratch<C>& x_;
  const Sight sight_;
};

}  // namespace
}  // namespace diffattn::cpu
