// The online softmax over a panel: scores of a block of keys, each query row a lane.
#pragma once
#include "exp2.h"
#include "rows.h"

namespace diffattn::cpu {
namespace {

// Of each lane, the keys it sees, counted from the block's first key. A panel holds numbers only where
// some of NR lanes see the key.
template <class C>
struct Limits {
  using Int = typename Exp2<C>::Int;
  typedef Int I __attribute__((vector_size(kVectorBytes)));
  alignas(kLine) Int begin[kMostRows], end[kMostRows];
  Range seen[kMostRows / NR<C>];  // by some of NR lanes: from the first such key to the last

  static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
  static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

  // Whether some lane does not see some of the n keys from `first` on.
  bool set(const Range* visible, int64_t lanes, int64_t first, int64_t n) {
    bool masked = false;
    for (int64_t r = 0; r < lanes; ++r) {
      const Range mine = meet({visible[r].begin - first, visible[r].end - first}, {0, n});
      begin[r] = Int(mine.begin);
      end[r] = Int(mine.end);
      masked |= mine.size() != n;
      Range& all = seen[r / NR<C>];
      if (r % NR<C> == 0) all = {n, 0};
      if (mine.size()) all = {min(all.begin, mine.begin), max(all.end, mine.end)};
    }
    return masked;
  }

  // panel [keys][lanes]: `value` where a lane does not see the key
  void mask(C* panel, int64_t lanes, C value) const {
    using S = Simd<C>;
    for (int64_t r = 0; r < lanes; r += S::W) {
      I lo, hi;
      __builtin_memcpy(&lo, begin + r, sizeof lo);
      __builtin_memcpy(&hi, end + r, sizeof hi);
      const Range keys = seen[r / NR<C>];
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        C* p = panel + j * lanes + r;
        const I key = Int(j) - I{};
        S::store(p, (lo <= key) & (key < hi) ? S::load(p) : S::set(value));
      }
    }
  }
};

// Scores are in log2 units. For each lane: `max` is the greatest so far, and `sum` the sum of
// 2^(score - max). panel [keys][lanes] becomes 2^(score - max), with this block's max in block_max.
template <class C>
void online_softmax(const C* scores, const Limits<C>& limits, int64_t lanes, C* max, C* sum,
                    C* block_max, C* panel) {
  using S = Simd<C>;
  using V = typename S::V;
  for (int64_t r = 0; r < lanes; r += S::W) {
    const Range keys = limits.seen[r / NR<C>];
    V top = S::set(-kInf<C>);
    for (int64_t j = keys.begin; j < keys.end; ++j)
      top = S::max(top, S::load(scores + j * lanes + r));
    const V old_max = S::load(max + r);
    V new_max = S::max(top, old_max);
    S::store(max + r, new_max);
    S::store(block_max + r, new_max);
    // A lane that has seen no key yet has max -inf; its scores are -inf too and must give 0.
    const V zero = {};
    new_max = new_max == S::set(-kInf<C>) ? zero : new_max;
    V total = S::load(sum + r) * exp2<C>(old_max - new_max);
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const V e = exp2<C>(S::load(scores + j * lanes + r) - new_max);
      S::store(panel + j * lanes + r, e);
      total += e;
    }
    S::store(sum + r, total);
  }
}

}  // namespace
}  // namespace diffattn::cpu
