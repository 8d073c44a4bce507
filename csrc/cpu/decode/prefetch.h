// Rows of a cache, asked for in the order of their addresses and a few lines at a time between pieces
// of arithmetic: memory serves streams best, and a burst would only queue. One head's rows alone lie
// apart, so the rows of several heads are asked for together.
#pragma once
#include <vector>

#include "../shared/mask.h"
#include "../shared/problem.h"
#include "../shared/scratch.h"

namespace diffattn::cpu {
namespace {

// The KV heads first .. first + count of one kind, which one worker decodes together.
struct Run {
  const Heads& heads;
  int64_t first, count;

  int64_t operator[](int64_t i) const { return heads[first + i]; }
  int64_t in_keys(int64_t i) const { return heads.in_keys(first + i); }
};

// Where the heads of a run have their numbers in a row, counted from the first head's. A head has n numbers
// of a row, among `span` that follow one another; none are found where these lie further apart.
inline std::vector<Range> stretches(const View& v, const Run& run, int64_t n, int64_t span) {
  std::vector<Range> found;
  if (span > 2 * n) return found;
  for (int64_t i = 0; i < run.count; ++i) {
    const int64_t begin = (run.in_keys(i) - run.in_keys(0)) * v.head;
    if (found.empty() || begin > found.back().end)
      found.push_back({begin, begin + span});
    else
      found.back().end = begin + span;
  }
  return found;
}

class Prefetch {
 public:
  Prefetch() = default;

  // These stretches of the rows `keys`, from the row of rows.head on.
  Prefetch(DType t, const KeyRows& rows, Range keys, const std::vector<Range>& stretches)
      : row_(static_cast<const char*>(rows.view.data) + rows.offset(keys.begin) * size_of(t)),
        stride_(rows.view.row * size_of(t)),
        size_(size_of(t)),
        rows_(keys.size()),
        stretches_(&stretches) {
    if (stretches[0].size() * size_ == stride_) {  // rows follow one another
      together_ = rows_;
      rows_ = 1;
    }
    begin();
  }

  void fetch(int lines) {
    if (line_ >= end_ && !next()) return;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(line_ + i * kLine);
    line_ += lines * kLine;
  }

 private:
  void begin() {
    const Range& stretch = (*stretches_)[at_];
    line_ = row_ + stretch.begin * size_;
    end_ = line_ + (stretch.size() * size_) * together_;
  }

  bool next() {
    if (rows_ == 0) return false;
    if (++at_ == stretches_->size()) {
      if (rows_ == 1) {
        rows_ = 0;
        return false;
      }
      --rows_;
      row_ += stride_;
      at_ = 0;
    }
    begin();
    return true;
  }

  const char *row_ = nullptr, *line_ = nullptr, *end_ = nullptr;
  int64_t stride_ = 0, size_ = 0, rows_ = 0, together_ = 1;
  const std::vector<Range>* stretches_ = nullptr;
  std::size_t at_ = 0;
};

}  // namespace
}  // namespace diffattn::cpu
