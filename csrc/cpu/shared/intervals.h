// Ranges of rows or of keys, and how many of them a row may see.
#pragma once
#include <cstdint>

namespace diffattn::cpu {
namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end > begin ? end - begin : 0; }
};

inline Range meet(Range a, Range b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

// Of keys that a row sees: the sink's, then the window's. A key belongs to the same one for every row, so that
// a tile of one of them shows each row a single range.
constexpr int kIntervals = 2;

// In ascending order, and disjoint. Any of them may be empty.
struct Intervals {
  Range each[kIntervals];

  bool empty() const {
    for (const Range& range : each)
      if (range.size()) return false;
    return true;
  }
};

}  // namespace
}  // namespace diffattn::cpu
