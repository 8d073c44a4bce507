// The product of two rows with V. They have too few sums for the tile of gemm.h, which would wait for
// each other; here a strip of V is four vectors wide, and V is read in the tensors' type.
#pragma once
#include "reader.h"

namespace diffattn::cpu {
namespace {

// out[r][0..2·N·W) += Σ_j p[r][j]·v[j][0..2·N·W)   r < 2, j < count
// Not inlined, as dots.
template <int N, class C, class Reader, class F>
__attribute__((noinline)) void strip_of_two_rows(Reader reader, int64_t count, Rows<const C> p,
                                                 Rows<const typename Reader::T> v, Rows<C> out,
                                                 const F& between) {
  using S = Simd<C>;
  typename S::V acc[2][2 * N];
#pragma GCC unroll 4
  for (int n = 0; n < 2 * N; ++n)
    for (int r = 0; r < 2; ++r) acc[r][n] = S::load(out[r] + n * S::W);
  for (int64_t j = 0; j < count; ++j) {
    typename S::V x[N][2];
    for (int n = 0; n < N; ++n) reader.load(v[j] + n * 2 * S::W, x[n]);
    const auto p0 = S::set(p[0][j]), p1 = S::set(p[1][j]);
#pragma GCC unroll 4
    for (int n = 0; n < 2 * N; ++n) {
      acc[0][n] += p0 * x[n / 2][n % 2];
      acc[1][n] += p1 * x[n / 2][n % 2];
    }
    between();
  }
#pragma GCC unroll 4
  for (int n = 0; n < 2 * N; ++n)
    for (int r = 0; r < 2; ++r) S::store(out[r] + n * S::W, acc[r][n]);
}

// The same for n_len columns, a multiple of 2·W. Columns of `out` are in the reader's order.
template <class C, class Reader, class F>
void product_of_two_rows(Reader reader, int64_t n_len, int64_t count, Rows<const C> p,
                         Rows<const typename Reader::T> v, Rows<C> out, const F& between) {
  constexpr int64_t kPair = 2 * Simd<C>::W;
  int64_t n = 0;
  for (; n + 2 * kPair <= n_len; n += 2 * kPair)
    strip_of_two_rows<2>(reader, count, p, columns(v, n), columns(out, n), between);
  for (; n < n_len; n += kPair)
    strip_of_two_rows<1>(reader, count, p, columns(v, n), columns(out, n), between);
}

}  // namespace
}  // namespace diffattn::cpu
