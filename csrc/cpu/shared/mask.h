// The law of `Mask` (diffattn.h) for one sequence, as intervals: which keys a row sees, which rows see a
// block of keys, and how much of a tile is seen.
#pragma once
#include "exp2.h"
#include "problem.h"

namespace diffattn::cpu {
namespace {

// Whether a KV head sees a window, and perhaps a sink, where the others see every key up to the diagonal.
inline bool streams(const Mask& mask, int64_t kv_head) {
  return mask.left >= 0 && (kv_head >= 64 || (mask.streaming >> kv_head & 1));
}

// The KV heads of one kind. Each kind is worked on apart, full heads first: they take longer, and streaming
// heads need less memory.
struct Heads {
  bool streaming, apart;  // apart: K and V have no heads of the other kind
  int64_t count = 0, in_all;
  uint64_t bits;

  Heads(const Mask& mask, int64_t nheads_k, bool streaming, bool apart = false)
      : streaming(streaming),
        apart(apart),
        in_all(nheads_k),
        bits(streaming ? mask.streaming : ~mask.streaming) {
    for (int64_t h = 0; h < nheads_k; ++h) count += streams(mask, h) == streaming;
  }

  int64_t operator[](int64_t nth) const {
    if (count == in_all) return nth;
    uint64_t left = bits;
    for (; nth > 0; --nth) left &= left - 1;
    return __builtin_ctzll(left);
  }

  // Its place among the heads of K and V.
  int64_t in_keys(int64_t nth) const { return apart ? nth : (*this)[nth]; }
};

template <class F>
void for_each_kind(const Mask& mask, int64_t nheads_k, const F& f, bool apart = false) {
  for (const bool streaming : {false, true})
    if (const Heads heads(mask, nheads_k, streaming, apart); heads.count) f(heads);
}

class SequenceMask {
 public:
  SequenceMask(const Mask& mask, const Sequence& s, int64_t kv_head)
      : s_(s),
        up_(s.seqlen_k - s.seqlen_q),
        left_(streams(mask, kv_head) ? mask.left : -1),
        right_(mask.right),
        sink_end_(left_ >= 0 && mask.sink > 0 ? s.first_key + mask.sink : 0) {}

  // Keys that some of `rows` sees: each row's lie between those of the row before and after it. The mask is
  // aligned bottom-right.
  Intervals keys_of(Range rows) const {
    Range keys{s_.first_key, s_.seqlen_k};
    if (right_ >= 0) keys = meet(keys, {0, rows.end + up_ + right_});
    const Range sink = meet(keys, {0, sink_end_});
    keys.begin = max(keys.begin, sink_end_);
    if (left_ >= 0) keys.begin = max(keys.begin, rows.begin + up_ - left_);
    return {{or_none(sink), or_none(keys)}};
  }
  Intervals keys_of(int64_t row) const { return keys_of({row, row + 1}); }

  // Rows that see some of `keys`: all below the diagonal where one of them is of the sink.
  Range rows_of(Range keys) const {
    keys = meet(keys, {s_.first_key, s_.seqlen_k});
    if (keys.size() == 0) return {0, 0};
    Range rows{0, s_.seqlen_q};
    if (left_ >= 0 && interval_of(keys.begin) == kWindow)
      rows = meet(rows, {0, keys.end - up_ + left_});
    if (right_ >= 0) rows = meet(rows, {keys.begin - up_ - right_, s_.seqlen_q});
    return or_none(rows);
  }

  // All keys but the padding, also those that no row sees.
  Intervals all_keys() const {
    const Range keys{s_.first_key, s_.seqlen_k}, sink = meet(keys, {0, sink_end_});
    return {{or_none(sink), or_none({max(keys.begin, sink_end_), keys.end})}};
  }

  int interval_of(int64_t key) const { return key < sink_end_ ? kSink : kWindow; }

 private:
  static constexpr int kSink = 0, kWindow = 1;
  static Range or_none(Range range) { return range.size() ? range : Range{0, 0}; }

  const Sequence& s_;
  int64_t up_, left_, right_;
  int64_t sink_end_;  // 0 without a sink
};

// The most blocks of `size` keys that some rows see some of, where the rows are of one kind of heads.
inline int64_t most_blocks(const Shape& s, const Mask& mask, bool streaming, int64_t rows,
                           int64_t size) {
  const int64_t all = ceil_div(s.seqlen_k, size);
  if (!streaming) return all;
  // An interval may begin at any key of a block.
  const auto in_blocks = [&](int64_t keys) { return min(ceil_div(keys + size - 1, size), all); };
  const int64_t window = mask.right < 0 ? all : in_blocks(rows + mask.left + mask.right);
  return window + (mask.sink > 0 ? in_blocks(mask.sink) : 0);
}

// The most keys that the blocks of keys of these rows have.
inline int64_t most_keys(const Shape& s, const Mask& mask, bool streaming, int64_t rows) {
  return kKeys * most_blocks(s, mask, streaming, rows, kKeys);
}

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
  int64_t place;  // of the first key in a panel
};

// Keys in blocks, which begin at multiples of kKeys. Panels and packed heads hold the blocks one after another,
// without the keys between intervals, so that memory and work follow the mask.
struct KeyBlocks {
  Range keys[kIntervals];  // from the start of an interval's first block to its last key

  KeyBlocks() : keys{} {}
  explicit KeyBlocks(const Intervals& from) {
    for (int n = 0; n < kIntervals; ++n)
      keys[n] = {from.each[n].begin - from.each[n].begin % kKeys, from.each[n].end};
  }

  int64_t first_place(int interval) const {
    int64_t place = 0;
    for (int n = 0; n < interval; ++n) place += round_up(keys[n].size(), kKeys);
    return place;
  }
  int64_t place(int interval, int64_t key) const {
    return first_place(interval) + key - keys[interval].begin;
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

  VisibleKeys(const SequenceMask& mask, Range rows, int64_t lanes) : blocks(mask.keys_of(rows)) {
    for (int64_t r = 0; r < lanes; ++r)
      of_row[r] = r < rows.size() ? mask.keys_of(rows.begin + r) : Intervals{};
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
