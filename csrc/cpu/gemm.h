// The register tile every matrix product here is made of: C[M][NR] = A[M][K]·B[K][NR]. A is read a
// number at a time, with any strides, so a transposed A costs nothing; B and C are read by rows.
#pragma once
#include "simd.h"

namespace diffattn::cpu {
namespace {

// Accumulators fill the register file less two vectors of B and one of A: 16 registers hold 6×2,
// the 32 of AVX-512 hold 12×2.
constexpr int MR = kVectorBytes == 64 ? 12 : 6;
constexpr int NV = 2;
template <class C>
constexpr int NR = NV * Simd<C>::W;

template <class C>
struct Operand {
  const C* data;
  int64_t row, k;  // strides of the row and of the summed index; B has no row stride
};

template <class C, int M>
inline __attribute__((always_inline)) void accumulate(int64_t k_len, Operand<C> a, Operand<C> b,
                                                      typename Simd<C>::V (&acc)[M][NV]) {
  using S = Simd<C>;
  for (int64_t k = 0; k < k_len; ++k, a.data += a.k, b.data += b.k) {
    typename S::V row[NV];
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) row[n] = S::load(b.data + n * S::W);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) acc[m][n] += S::set(a.data[m * a.row]) * row[n];
  }
}

enum class Into { overwrite, add };

template <class C, Into into, int M>
void tile(int64_t k_len, Operand<C> a, Operand<C> b, C* c, int64_t ldc) {
  using S = Simd<C>;
  typename S::V acc[M][NV] = {};
  accumulate<C, M>(k_len, a, b, acc);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) {
      C* p = c + m * ldc + n * S::W;
      S::store(p, into == Into::add ? S::load(p) + acc[m][n] : acc[m][n]);
    }
}

// The same for m_len <= MR rows, known only at run time.
template <class C, Into into, int M = MR>
inline void tile(int m_len, int64_t k_len, Operand<C> a, Operand<C> b, C* c, int64_t ldc) {
  if (m_len == M) return tile<C, into, M>(k_len, a, b, c, ldc);
  if constexpr (M > 1) tile<C, into, M - 1>(m_len, k_len, a, b, c, ldc);
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end > begin ? end - begin : 0; }
};

inline Range meet(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// C[M][n_len] += A·B where row m sums over range[m] only; a and b start at index `origin` of the
// summed dimension. A masked pair is left out, not multiplied by zero: 0·NaN would be NaN.
template <class C>
void product_over_ranges(int m_len, int64_t n_len, const Range* range, int64_t origin, Operand<C> a,
                         Operand<C> b, C* c, int64_t ldc) {
  Range common = range[0];
  for (int m = 1; m < m_len; ++m) common = meet(common, range[m]);
  const auto add = [&](int m, int count, Range r) {
    if (r.size() == 0) return;
    const C* a_at = a.data + m * a.row + (r.begin - origin) * a.k;
    const C* b_at = b.data + (r.begin - origin) * b.k;
    for (int64_t n = 0; n < n_len; n += NR<C>)
      tile<C, Into::add>(count, r.size(), {a_at, a.row, a.k}, {b_at + n, 0, b.k}, c + m * ldc + n,
                         ldc);
  };
  if (common.size() == 0) {
    for (int m = 0; m < m_len; ++m) add(m, 1, range[m]);
    return;
  }
  add(0, m_len, common);
  for (int m = 0; m < m_len; ++m) {
    add(m, 1, {range[m].begin, common.begin});
    add(m, 1, {common.end, range[m].end});
  }
}

}  // namespace
}  // namespace diffattn::cpu
