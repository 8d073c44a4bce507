// Rows of a cache, asked for in the order of their addresses and a few lines at a time between pieces
// of arithmetic: memory serves streams best, and a burst would only queue. One head's rows alone lie
// apart, so the rows of several heads are asked for together.
#pragma once
#include "../shared/problem.h"
#include "../shared/scratch.h"

namespace diffattn::cpu {
namespace {

class Prefetch {
 public:
  Prefetch() = default;

  // Rows `keys` of `heads` heads from rows.head on. A head has n numbers of a row, among `head_span` that
  // follow one another.
  Prefetch(DType t, const KeyRows& rows, Range keys, int64_t heads, int64_t n, int64_t head_span) {
    const View& v = rows.view;
    const int64_t span = (heads - 1) * v.head + head_span;
    if (span > 2 * heads * n) return;  // heads are not side by side
    line_ = static_cast<const char*>(v.data) + rows.offset(keys.begin) * size_of(t);
    bytes_ = span * size_of(t);
    stride_ = v.row * size_of(t);
    rows_ = keys.size();
    if (stride_ == bytes_) {
      bytes_ *= rows_;
      rows_ = 1;
    }
    end_ = line_ + bytes_;
  }

  void fetch(int lines) {
    if (line_ >= end_ && !next_row()) return;
    for (int i = 0; i < lines; ++i) __builtin_prefetch(line_ + i * kLine);
    line_ += lines * kLine;
  }

 private:
  bool next_row() {
    if (rows_ <= 1) return false;
    --rows_;
    end_ += stride_;
    line_ = end_ - bytes_;
    return true;
  }

  const char *line_ = nullptr, *end_ = nullptr;
  int64_t bytes_ = 0, stride_ = 0, rows_ = 0;
};

}  // namespace
}  // namespace diffattn::cpu
