// The law of `Mask` (diffattn.h) for one sequence, as intervals: which keys a row sees, which rows see a
// block of keys, and how much of a tile is seen.
#pragma once
#include "exp2.h"
#include "problem.h"

namespace diffattn::cpu {
namespace {

class SequenceMask {
 public:
  SequenceMask(const Mask& mask, const Sequence& s) : mask_(mask), s_(s) {}

  // Keys that some of `rows` sees: each row's lie between those of the row before and after it. Causal and
  // windowed masks are both one interval, aligned bottom-right.
  Intervals keys_of(Range rows) const {
    const int64_t up = s_.seqlen_k - s_.seqlen_q;
    Range keys{s_.first_key, s_.seqlen_k};
    if (mask_.left >= 0) keys = meet(keys, {rows.begin + up - mask_.left, s_.seqlen_k});
    if (mask_.right >= 0) keys = meet(keys, {0, rows.end + up + mask_.right});
    return {{keys.size() ? keys : Range{0, 0}}};
  }
  Intervals keys_of(int64_t row) const { return keys_of({row, row + 1}); }

  // Rows that see some of `keys`.
  Range rows_of(Range keys) const {
    keys = meet(keys, {s_.first_key, s_.seqlen_k});
    if (keys.size() == 0) return {0, 0};
    const int64_t up = s_.seqlen_k - s_.seqlen_q;
    Range rows{0, s_.seqlen_q};
    if (mask_.left >= 0) rows = meet(rows, {0, keys.end - up + mask_.left});
    if (mask_.right >= 0) rows = meet(rows, {keys.begin - up - mask_.right, s_.seqlen_q});
    return rows.size() ? rows : Range{0, 0};
  }

 private:
  const Mask& mask_;
  const Sequence& s_;
};

enum class Tile { hidden, partial, full };

// What a row that sees `seen` has of a tile's keys.
inline Tile tile_of(Range seen, Range keys) {
  const int64_t common = meet(seen, keys).size();
  return common == 0 ? Tile::hidden : common == keys.size() ? Tile::full : Tile::partial;
}

// At most kKeys keys, of one interval of the rows that see them.
struct KeyBlock {
  int interval;
  Range keys;
  int64_t place;  // of the first key in panels that hold the keys of all blocks
};

// The keys that some row of a block of rows sees, in blocks from multiples of kKeys on. Panels hold these
// alone, so that their size and the work follow the mask.
struct KeyBlocks {
  Range keys[kIntervals];  // from the start of the first block in sight to the last key in sight

  int64_t place(int interval, int64_t key) const {
    int64_t place = key - keys[interval].begin;
    for (int n = 0; n < interval; ++n) place += round_up(keys[n].size(), kKeys);
    return place;
  }

  template <class F>
  void for_each(const F& f) const {
    for (int n = 0; n < kIntervals; ++n)
      for (int64_t j = keys[n].begin; j < keys[n].end; j += kKeys)
        f(KeyBlock{n, meet({j, j + kKeys}, keys[n]), place(n, j)});
  }
};

// What each row of a block of rows sees.
struct VisibleKeys {
  Intervals of_row[kMostRows];  // empty for lanes beyond the rows
  KeyBlocks blocks;

  VisibleKeys(const SequenceMask& mask, Range rows, int64_t lanes) {
    for (int64_t r = 0; r < lanes; ++r)
      of_row[r] = r < rows.size() ? mask.keys_of(rows.begin + r) : Intervals{};
    for (int n = 0; n < kIntervals; ++n) {
      const Range all = mask.keys_of(rows).each[n];
      blocks.keys[n] = {all.begin - all.begin % kKeys, all.end};
    }
  }

  Range in_block(int64_t r, const KeyBlock& block) const {
    return meet(of_row[r].each[block.interval], block.keys);
  }
};

// What each lane sees of a block of keys, counted from the block's first. A panel holds numbers only where
// some of NR lanes see the key.
template <class C>
struct LaneMask {
  using Int = typename Exp2<C>::Int;
  typedef Int I __attribute__((vector_size(kVectorBytes)));
  alignas(kLine) Int begin[kMostRows], end[kMostRows];
  Range seen[kMostRows / NR<C>];  // by some of NR lanes: from the first such key to the last

  // What the lanes have of the tile.
  Tile set(const VisibleKeys& visible, int64_t lanes, const KeyBlock& block) {
    const int64_t first = block.keys.begin, n = block.keys.size();
    int64_t hidden = 0, full = 0;
    for (int64_t r = 0; r < lanes; ++r) {
      const Range keys = visible.in_block(r, block), mine{keys.begin - first, keys.end - first};
      begin[r] = Int(mine.begin);
      end[r] = Int(mine.end);
      hidden += mine.size() == 0;
      full += mine.size() == n;
      Range& all = seen[r / NR<C>];
      if (r % NR<C> == 0) all = {n, 0};
      if (mine.size()) all = {min(all.begin, mine.begin), max(all.end, mine.end)};
    }
    return full == lanes ? Tile::full : hidden == lanes ? Tile::hidden : Tile::partial;
  }

  // Puts `value` where a lane does not see the key
  void hide(Panel<C> panel, C value) const {
    using S = Simd<C>;
    for (int64_t r = 0; r < panel.lanes; r += S::W) {
      I lo, hi;
      __builtin_memcpy(&lo, begin + r, sizeof lo);
      __builtin_memcpy(&hi, end + r, sizeof hi);
      const Range keys = seen[r / NR<C>];
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        C* p = panel[j] + r;
        const I key = Int(j) - I{};
        S::store(p, (lo <= key) & (key < hi) ? S::load(p) : S::set(value));
      }
    }
  }
};

}  // namespace
}  // namespace diffattn::cpu
