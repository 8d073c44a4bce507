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

// Few rows have few sums, which would wait for each other: then each of K steps has sums of its own.
template <int M>
constexpr int K = M <= 2 ? 2 : 1;

template <class C, int M>
inline __attribute__((always_inline)) void accumulate(int64_t k_len, Operand<C> a, Operand<C> b,
                                                      typename Simd<C>::V (&acc)[K<M> * M][NV]) {
  using S = Simd<C>;
  const auto step = [&](int u) __attribute__((always_inline)) {
    typename S::V row[NV];
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) row[n] = S::load(b.data + n * S::W);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n) acc[u * M + m][n] += S::set(a.data[m * a.row]) * row[n];
    a.data += a.k;
    b.data += b.k;
  };
  int64_t k = 0;
  for (; k + K<M> <= k_len; k += K<M>)
#pragma GCC unroll 2
    for (int u = 0; u < K<M>; ++u) step(u);
  if (k < k_len) step(0);
}

enum class Into { overwrite, add };

template <class C, Into into, int M>
void tile(int64_t k_len, Operand<C> a, Operand<C> b, C* c, int64_t ldc) {
  using S = Simd<C>;
  typename S::V acc[K<M> * M][NV] = {};
  accumulate<C, M>(k_len, a, b, acc);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) {
      typename S::V sum = acc[m][n];
      if (K<M> == 2) sum += acc[(K<M> - 1) * M + m][n];
      C* p = c + m * ldc + n * S::W;
      S::store(p, into == Into::add ? S::load(p) + sum : sum);
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

// MR of the m_len rows of a product at a time: f(first, count).
template <class F>
inline void by_tiles(int64_t m_len, const F& f) {
  for (int64_t m = 0; m < m_len; m += MR) f(m, int(m_len - m < MR ? m_len - m : MR));
}

// C[m_len][n_len] += A·B where row m sums over range[m] only; a and b start at index `origin` of
// the summed dimension. A masked pair is left out, not multiplied by zero: 0·NaN would be NaN.
// A strip of B stays in cache while all rows pass.
template <class C>
void product_over_ranges(int64_t m_len, int64_t n_len, const Range* range, int64_t origin,
                         Operand<C> a, Operand<C> b, C* c, int64_t ldc) {
  for (int64_t n = 0; n < n_len; n += NR<C>) {
    const auto add = [&](int64_t m, int count, Range r) {
      if (r.size() == 0) return;
      tile<C, Into::add>(count, r.size(),
                         {a.data + m * a.row + (r.begin - origin) * a.k, a.row, a.k},
                         {b.data + n + (r.begin - origin) * b.k, 0, b.k}, c + m * ldc + n, ldc);
    };
    by_tiles(m_len, [&](int64_t first, int count) {
      Range common = range[first];
      for (int m = 1; m < count; ++m) common = meet(common, range[first + m]);
      if (common.size() == 0) {
        for (int m = 0; m < count; ++m) add(first + m, 1, range[first + m]);
        return;
      }
      add(first, count, common);
      for (int m = 0; m < count; ++m) {
        add(first + m, 1, {range[first + m].begin, common.begin});
        add(first + m, 1, {common.end, range[first + m].end});
      }
    });
  }
}

}  // namespace
}  // namespace diffattn::cpu
