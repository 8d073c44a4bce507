// Rotary position embedding (RoFormer, arXiv 2104.09864) of one row.
#pragma once
#include "convert.h"

namespace diffattn::cpu {
namespace {

// Rotates the first rotary.dim numbers of a row to `position`, then rounds the row to the tensors'
// type, so that it equals a row that was rotated and stored before.
template <class C>
void rotate(DType t, const Rotary& rotary, int64_t position, int64_t n, C* row) {
  const int64_t half = rotary.dim / 2;
  const int64_t step = rotary.interleaved ? 2 : 1, pair = rotary.interleaved ? 1 : half;
  for (int64_t i = 0; i < half; ++i) {
    C cos, sin;
    load_row<C>(t, rotary.cos, position * half + i, 1, &cos);
    load_row<C>(t, rotary.sin, position * half + i, 1, &sin);
    C& x = row[i * step];
    C& y = row[i * step + pair];
    const C rotated = x * cos - y * sin;
    y = x * sin + y * cos;
    x = rotated;
  }
  round_row(t, n, row);
}

}  // namespace
}  // namespace diffattn::cpu
