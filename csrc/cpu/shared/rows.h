// Rows of q, k, v in the compute type: natural (row after row) or transposed for use as lanes.
#pragma once
#include "problem.h"
#include "rotary.h"

namespace diffattn::cpu {
namespace {

template <class C>
inline void clear_padding(C* row, int64_t n) {
  for (int64_t i = n; i < padded<C>(n); ++i) row[i] = 0;
}

// Rows of a block: fewer when the panels of long sequences would not stay in cache.
template <class C>
int64_t block_rows(int64_t seqlen_q, int64_t seqlen_k, int panels) {
  constexpr int64_t kPanelBytes = 16 << 20;
  const bool fits = seqlen_k <= kPanelBytes / (kRows * panels * int64_t(sizeof(C)));
  return fits && seqlen_q > NR<float> ? kRows : NR<float>;
}

// Rows of one head lie apart, where the hardware does not look ahead, so kAhead rows ahead each row is
// asked for.
constexpr int64_t kAhead = 8;
inline void fetch_row(DType t, const void* p, int64_t at, int64_t n) {
  const char* row = static_cast<const char*>(element(t, p, at));
  for (int64_t i = 0; i < n * size_of(t); i += kLine) __builtin_prefetch(row + i);
}

// dst [keys.size()][leading(n)] = those keys, or values, of n numbers.
template <class C>
void load_keys(DType t, const KeyRows& rows, Range keys, int64_t n, C* dst) {
  for (int64_t j = keys.begin; j < keys.end; ++j, dst += leading<C>(n)) {
    for_pieces(rows.view, n, [&](int64_t col, int64_t at, int64_t count) {
      if (j + kAhead < keys.end) fetch_row(t, rows.view.data, rows.offset(j + kAhead) + at, count);
      load_row<C>(t, rows.view.data, rows.offset(j) + at, count, dst + col);
    });
    clear_padding(dst, n);
  }
}

// The same for bf16 as it is. A row's numbers in pairs: dst [keys.size()][leading(n / 2)].
inline void load_pairs_of_numbers(const KeyRows& rows, Range keys, int64_t n, uint32_t* dst) {
  for (int64_t j = keys.begin; j < keys.end; ++j, dst += leading<float>(n / 2)) {
    for_pieces(rows.view, n, [&](int64_t col, int64_t at, int64_t count) {
      if (j + kAhead < keys.end)
        fetch_row(DType::bf16, rows.view.data, rows.offset(j + kAhead) + at, count);
      __builtin_memcpy(dst + col / 2, element(DType::bf16, rows.view.data, rows.offset(j) + at),
                       count * sizeof(uint16_t));
    });
  }
}

// dst[0..n) = the pairs of first[i] and second[i]; null stands for zeros.
inline void pair_rows(const void* first, const void* second, int64_t n, uint32_t* dst) {
  constexpr int W = Simd<float>::W;
  const auto *a = static_cast<const uint16_t*>(first), *b = static_cast<const uint16_t*>(second);
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const Bits low = a ? widen(load_any<Halves>(a + i)) : Bits{};
    const Bits high = b ? widen(load_any<Halves>(b + i)) : Bits{};
    const Bits pair = low | high << 16;
    __builtin_memcpy(dst + i, &pair, sizeof pair);
  }
  for (; i < n; ++i) dst[i] = (a ? a[i] : 0u) | (b ? uint32_t(b[i]) << 16 : 0u);
}

// Keys 2i and 2i + 1 in pairs, from the pair of the first key on: dst [pairs][leading(n)]. A key that is not
// among `keys` counts as 0.
inline void load_pairs_of_keys(const KeyRows& rows, Range keys, int64_t n, uint32_t* dst) {
  const auto row = [&](int64_t j, int64_t at) -> const void* {
    if (j < keys.begin || j >= keys.end) return nullptr;
    return element(DType::bf16, static_cast<const void*>(rows.view.data), rows.offset(j) + at);
  };
  for (int64_t i = keys.begin / 2; i < ceil_div(keys.end, 2); ++i, dst += leading<float>(n)) {
    for_pieces(rows.view, n, [&](int64_t col, int64_t at, int64_t count) {
      for (int64_t j = 2 * i + kAhead; j < 2 * i + kAhead + 2 && j < keys.end; ++j)
        fetch_row(DType::bf16, rows.view.data, rows.offset(j) + at, count);
      pair_rows(row(2 * i, at), row(2 * i + 1, at), count, dst + col);
    });
    for (int64_t x = n; x < padded<float>(n); ++x) dst[x] = 0;
  }
}

// dst [rows of the block][leading(n)]
template <class C>
void load_queries(DType t, const View& v, const RowBlock& block, int64_t n, C* dst) {
  const Range rows = block.rows;
  for (int64_t i = rows.begin; i < rows.end; ++i, dst += leading<C>(n)) {
    if (i + kAhead < rows.end) fetch_row(t, v.data, block.offset(v, i + kAhead), n);
    load_row<C>(t, v.data, block.offset(v, i), n, dst);
    clear_padding(dst, n);
  }
}

// Rotates queries to the positions of the keys that are appended with them; all to the first of
// these if no mask tells rows apart. Params: FwdParams or DecodeParams.
template <class C, class Params>
void rotate_rows(const Params& p, const Cache& cache, const RowBlock& block, C* natural) {
  const bool ordered = p.mask.left >= 0 || p.mask.right >= 0;
  const Range rows = block.rows;
  const Sequence& s = block.sequence;
  const int64_t first = s.uncounted + s.seqlen_k - cache.seqlen_new, d = p.shape.headdim;
  for (int64_t i = rows.begin; i < rows.end; ++i, natural += leading<C>(d))
    rotate(p.dtype, cache.rotary, first + (ordered ? i : 0), d, natural);
}

// What makes products of queries and keys scores in log2 units, or, with a soft cap, what tanh is taken of. It is
// multiplied before a score is compared with a maximum: both are then the same number, rounded alike, and
// 2^(score - max) of the largest is exactly 1, however large the scores are.
template <class C, class Params>
inline C score_factor(const Params& p) {
  return C(p.softcap > 0 ? p.softmax_scale / p.softcap : p.softmax_scale * kLog2e<double>);
}

// dst [lanes / NR][n / kPer][NR] = src [count][leading(n)] transposed; lanes >= count are 0.
template <class P>
void transpose(const typename P::C* src, int64_t count, int64_t lanes, int64_t n,
               typename P::T* dst) {
  using C = typename P::C;
  const int64_t steps = n / P::kPer;
  for (int64_t r0 = 0; r0 < lanes; r0 += NR<C>, dst += steps * NR<C>)
    for (int64_t r = 0; r < NR<C>; ++r) {
      if (r0 + r >= count) {
        for (int64_t i = 0; i < steps; ++i) dst[i * NR<C> + r] = 0;
        continue;
      }
      typename P::T held[kMostHeaddimV / P::kPer];
      const auto* row = P::hold(n, src + (r0 + r) * leading<C>(n), held);
      for (int64_t i = 0; i < steps; ++i) dst[i * NR<C> + r] = row[i];
    }
}

// dst [lanes / kPer][leading(n)] = src [count][leading(n)], the rows of a pair side by side; a row beyond
// them counts as 0.
template <class P>
void steps_of_rows(const typename P::C* src, int64_t count, int64_t n, typename P::T* dst) {
  const int64_t ld = leading<typename P::C>(n);
  if constexpr (P::kPer == 1) {
    __builtin_memcpy(dst, src, count * ld * sizeof *dst);
  } else {
    typename P::T first[kMostHeaddimV / 2], second[kMostHeaddimV / 2];
    for (int64_t r = 0; r < count; r += 2, dst += ld) {
      const bool whole = r + 1 < count;
      pair_rows(P::hold(n, src + r * ld, first),
                whole ? P::hold(n, src + (r + 1) * ld, second) : nullptr, n, dst);
      for (int64_t x = n; x < padded<float>(n); ++x) dst[x] = 0;
    }
  }
}

// panel [n_keys][lanes] = factor · A [n_keys][steps] · B [lanes / NR][steps][NR], except where none of
// NR lanes sees any of MR keys: lanes r .. r + NR see keys of seen[r / NR] only.
template <class P>
void product_to_panel(int64_t n_keys, int64_t steps, Factor<P> a, const typename P::T* b,
                      const Range* seen, typename P::C factor, Panel<typename P::C> panel) {
  constexpr int64_t N = NR<typename P::C>;
  by_tiles(n_keys, [&](int64_t j, int count) {
    for (int64_t r = 0; r < panel.lanes; r += N)
      if (meet(seen[r / N], {j, j + count}).size())
        tile<P, Into::overwrite>(count, steps, {a.data + j * a.row, a.row, a.k},
                                 {b + r * steps, 0, N}, factor, {panel[j] + r, panel.lanes});
  });
}

}  // namespace
}  // namespace diffattn::cpu
