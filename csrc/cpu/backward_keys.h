// Backward, second half: a block of keys against the blocks of rows of one step.
//   dK_c += s·dS_cᵀ·Q_c     dV += (P1 - λ·P2)ᵀ·dO
#pragma once
#include "backward_rows.h"

namespace diffattn::cpu {
namespace {

// Adds what a block of rows gives to the keys `keys`, a block of its panel.
template <class C>
void accumulate_keys(const BwdParams& p, const Sequence& s, const GradBlock<C>& block, Range keys,
                     const PackedHead<C>& grads) {
  const int64_t d = p.shape.headdim, dv = p.shape.headdim_v;
  const int64_t ldk = leading<C>(d), ldv = leading<C>(dv);
  const int64_t j = keys.begin;
  Range seen[kKeys];
  for (int64_t m = 0; m < keys.size(); ++m)
    seen[m] = meet(visible_rows(s, p.window, j + m), block.rows);
  for (int c = 0; c < 2; ++c)
    product_over_ranges<C>(keys.size(), d, seen, block.rows.begin, {block.at(c, j), block.lanes, 1},
                           {block.q + c * block.lanes * ldk, 0, ldk}, grads.k[c] + j * ldk, ldk);
  product_over_ranges<C>(keys.size(), dv, seen, block.rows.begin, {block.at(2, j), block.lanes, 1},
                         {block.dout, 0, ldv}, grads.v + j * ldv, ldv);
}

template <class C>
void clear_keys(const Shape& s, Range keys, const PackedHead<C>& grads) {
  const int64_t ldk = leading<C>(s.headdim), ldv = leading<C>(s.headdim_v);
  for (int c = 0; c < 2; ++c)
    __builtin_memset(grads.k[c] + keys.begin * ldk, 0, keys.size() * ldk * sizeof(C));
  __builtin_memset(grads.v + keys.begin * ldv, 0, keys.size() * ldv * sizeof(C));
}

template <class C>
void store_keys(const BwdParams& p, const Sequence& s, int64_t head, Range keys,
                const PackedHead<C>& grads) {
  const int64_t d = p.shape.headdim, dv = p.shape.headdim_v;
  const Paging none;
  for (int64_t j = keys.begin; j < keys.end; ++j) {
    for (int c = 0; c < p.shape.k_components; ++c)
      store_row(p.dtype, grads.k[c] + j * leading<C>(d), d, p.dk.data,
                KeyRows{p.dk, none, s, head, c}.offset(j));
    store_row(p.dtype, grads.v + j * leading<C>(dv), dv, p.dv.data,
              KeyRows{p.dv, none, s, head, 0}.offset(j));
  }
}

}  // namespace
}  // namespace diffattn::cpu
