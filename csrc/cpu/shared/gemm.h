// The register tile every matrix product here is made of: C[M][NR] = A[M][K]·B[K][NR]. A is read a
// number (or pair) at a time, with any strides, so a transposed A costs nothing; B and C are read by
// rows. P is the type of products (products.h).
#pragma once
#include "intervals.h"
#include "products.h"

namespace diffattn::cpu {
namespace {

// Accumulators fill the register file less two vectors of B and one of A: 16 registers hold 6×2,
// the 32 of AVX-512 hold 12×2.
constexpr int MR = kVectorBytes == 64 ? 12 : 6;
constexpr int NV = 2;
template <class C>
constexpr int NR = NV * Simd<C>::W;

// What a product reads.
template <class P>
struct Factor {
  const typename P::T* data;
  int64_t row, k;  // strides of the row and of the summed index; B has no row stride
};

// Rows at equal distances.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t i) const { return data + i * stride; }
};

// From row i, or column n, on.
template <class T>
Rows<T> rows_from(const Rows<T>& rows, int64_t i) {
  return {rows[i], rows.stride};
}
template <class T>
Rows<T> columns(const Rows<T>& rows, int64_t n) {
  return {rows.data + n, rows.stride};
}

// Few rows have few sums, which would wait for each other: then each of K steps has sums of its own.
template <int M>
constexpr int K = M <= 2 ? 2 : 1;

template <class P, int M>
inline __attribute__((always_inline)) void accumulate(
    int64_t k_len, Factor<P> a, Factor<P> b, typename Simd<typename P::C>::V (&acc)[K<M> * M][NV]) {
  const auto step = [&](int u) __attribute__((always_inline)) {
    typename P::Row row[NV];
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) row[n] = P::load(b.data + n * Simd<typename P::C>::W);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int n = 0; n < NV; ++n)
        acc[u * M + m][n] = P::add(acc[u * M + m][n], a.data[m * a.row], row[n]);
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

// C = factor·A·B, or C += A·B.
template <class P, Into into, int M>
void tile(int64_t k_len, Factor<P> a, Factor<P> b, typename P::C factor, Rows<typename P::C> c) {
  using S = Simd<typename P::C>;
  typename S::V acc[K<M> * M][NV] = {};
  accumulate<P, M>(k_len, a, b, acc);
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int n = 0; n < NV; ++n) {
      typename S::V sum = acc[m][n];
      if (K<M> == 2) sum += acc[(K<M> - 1) * M + m][n];
      typename P::C* p = c[m] + n * S::W;
      S::store(p, into == Into::add ? S::load(p) + sum : sum * factor);
    }
}

// The same for m_len <= MR rows, known only at run time.
template <class P, Into into, int M = MR>
inline void tile(int m_len, int64_t k_len, Factor<P> a, Factor<P> b, typename P::C factor,
                 Rows<typename P::C> c) {
  if (m_len == M) return tile<P, into, M>(k_len, a, b, factor, c);
  if constexpr (M > 1) tile<P, into, M - 1>(m_len, k_len, a, b, factor, c);
}

// MR of the m_len rows of a product at a time: f(first, count).
template <class F>
inline void by_tiles(int64_t m_len, const F& f) {
  for (int64_t m = 0; m < m_len; m += MR) f(m, int(m_len - m < MR ? m_len - m : MR));
}

// Where only one number of a pair is summed: C[NR] += a·b with the other number of both left out.
template <class P>
inline void add_half(typename P::T a, const typename P::T* b, typename P::T half,
                     typename P::C* c) {
  using S = Simd<typename P::C>;
#pragma GCC unroll 2
  for (int n = 0; n < NV; ++n) {
    typename P::C* p = c + n * S::W;
    S::store(p, P::add(S::load(p), a & half, P::load(b + n * S::W) & half));
  }
}

// C[m_len][n_len] += A·B where row m sums over range[m] only; a and b start at index `origin` of
// the summed dimension. A masked number is left out, not multiplied by zero: 0·NaN would be NaN.
// A strip of B stays in cache while all rows pass.
template <class P>
void product_over_ranges(int64_t m_len, int64_t n_len, const Range* range, int64_t origin,
                         Factor<P> a, Factor<P> b, Rows<typename P::C> c) {
  constexpr int64_t kPer = P::kPer;
  // What operands hold of a range of numbers, whole.
  const auto whole = [&](Range r) {
    return Range{(r.begin - origin + kPer - 1) / kPer, (r.end - origin) / kPer};
  };
  for (int64_t n = 0; n < n_len; n += NR<typename P::C>) {
    const auto add = [&](int64_t m, int count, Range r) {
      if (r.size() == 0) return;
      tile<P, Into::add>(count, r.size(), {a.data + m * a.row + r.begin * a.k, a.row, a.k},
                         {b.data + n + r.begin * b.k, 0, b.k}, 1, {c[m] + n, c.stride});
    };
    const auto add_row = [&](int64_t m, Range r) {
      if (r.size() == 0) return;
      add(m, 1, whole(r));
      if constexpr (kPer == 2) {
        const auto half = [&](int64_t number, typename P::T which) {
          const int64_t k = (number - origin) / 2;
          add_half<P>(a.data[m * a.row + k * a.k], b.data + n + k * b.k, which, c[m] + n);
        };
        if ((r.begin - origin) % 2) half(r.begin, P::kSecond);
        if ((r.end - origin) % 2) half(r.end - 1, P::kFirst);
      }
    };
    by_tiles(m_len, [&](int64_t first, int count) {
      Range common = range[first];
      for (int m = 1; m < count; ++m) common = meet(common, range[first + m]);
      const Range shared = whole(common);
      if (shared.size() == 0) {
        for (int m = 0; m < count; ++m) add_row(first + m, range[first + m]);
        return;
      }
      add(first, count, shared);
      for (int m = 0; m < count; ++m) {
        add_row(first + m, {range[first + m].begin, origin + shared.begin * kPer});
        add_row(first + m, {origin + shared.end * kPer, range[first + m].end});
      }
    });
  }
}

}  // namespace
}  // namespace diffattn::cpu
