// The online softmax over a panel: scores of a block of keys, each query row a lane.
#pragma once
#include "exp2.h"
#include "rows.h"

namespace diffattn::cpu {
namespace {

// Of each lane, the keys it sees, counted from the block's first key.
template <class C>
struct Limits {
  using Int = typename Exp2<C>::Int;
  typedef Int I __attribute__((vector_size(kVectorBytes)));
  alignas(kLine) Int begin[kRows], end[kRows];

  // Whether some lane does not see some of the n keys from `first` on.
  bool set(const Range* visible, int64_t lanes, int64_t first, int64_t n) {
    bool masked = false;
    for (int64_t r = 0; r < lanes; ++r) {
      const Range seen = meet({visible[r].begin - first, visible[r].end - first}, {0, n});
      begin[r] = Int(seen.begin);
      end[r] = Int(seen.end);
      masked |= seen.size() != n;
    }
    return masked;
  }

  // panel [n][lanes]: `value` where a lane does not see the key
  void mask(C* panel, int64_t n, int64_t lanes, C value) const {
    using S = Simd<C>;
    for (int64_t r = 0; r < lanes; r += S::W) {
      I lo, hi;
      __builtin_memcpy(&lo, begin + r, sizeof lo);
      __builtin_memcpy(&hi, end + r, sizeof hi);
      for (int64_t j = 0; j < n; ++j) {
        C* p = panel + j * lanes + r;
        const I key = Int(j) - I{};
        S::store(p, (lo <= key) & (key < hi) ? S::load(p) : S::set(value));
      }
    }
  }
};

// For each lane: `max` is the greatest scaled score so far, in log2 units, and `sum` the sum of
// 2^(score - max). panel [n][lanes] becomes 2^(score - max), with this block's max in block_max.
template <class C>
void online_softmax(const C* scores, int64_t n, int64_t lanes, C scale, C* max, C* sum,
                    C* block_max, C* panel) {
  using S = Simd<C>;
  using V = typename S::V;
  const V factor = S::set(scale * kLog2e<C>);
  for (int64_t r = 0; r < lanes; r += S::W) {
    V top = S::set(-kInf<C>);
    for (int64_t j = 0; j < n; ++j) top = S::max(top, S::load(scores + j * lanes + r));
    const V old_max = S::load(max + r);
    V new_max = S::max(top * factor, old_max);
    S::store(max + r, new_max);
    S::store(block_max + r, new_max);
    // A lane that has seen no key yet has max -inf; its scores are -inf too and must give 0.
    const V zero = {};
    new_max = new_max == S::set(-kInf<C>) ? zero : new_max;
    V total = S::load(sum + r) * exp2<C>(old_max - new_max);
    for (int64_t j = 0; j < n; ++j) {
      const V e = exp2<C>(S::load(scores + j * lanes + r) * factor - new_max);
      S::store(panel + j * lanes + r, e);
      total += e;
    }
    S::store(sum + r, total);
  }
}

}  // namespace
}  // namespace diffattn::cpu
