// The online softmax over a panel: scores of a block of keys, each query row a lane.
#pragma once
#include "mask.h"

namespace diffattn::cpu {
namespace {

// Scores are in log2 units. For each lane: `max` is the greatest so far, and `sum` the sum of 2^(score -
// max). `panel` becomes 2^(score - max), with this block's max in block_max. Lanes r .. r + NR see keys of
// seen[r / NR] only.
template <class C>
void online_softmax(Panel<C> scores, const Range* seen, C* max, C* sum, C* block_max,
                    Panel<C> panel) {
  using S = Simd<C>;
  using V = typename S::V;
  for (int64_t r = 0; r < scores.lanes; r += S::W) {
    const Range keys = seen[r / NR<C>];
    V top = S::set(-kInf<C>);
    for (int64_t j = keys.begin; j < keys.end; ++j) top = S::max(top, S::load(scores[j] + r));
    const V old_max = S::load(max + r);
    V new_max = S::max(top, old_max);
    S::store(max + r, new_max);
    S::store(block_max + r, new_max);
    // A lane that has seen no key yet has max -inf; its scores are -inf too and must give 0.
    const V zero = {};
    new_max = new_max == S::set(-kInf<C>) ? zero : new_max;
    V total = S::load(sum + r) * exp2<C>(old_max - new_max);
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const V e = exp2<C>(S::load(scores[j] + r) - new_max);
      S::store(panel[j] + r, e);
      total += e;
    }
    S::store(sum + r, total);
  }
}

}  // namespace
}  // namespace diffattn::cpu
