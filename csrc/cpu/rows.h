// Rows of q, k, v in the compute type: natural (row after row) or transposed for use as lanes.
#pragma once
#include "problem.h"
#include "rotary.h"
#include "scratch.h"

namespace diffattn::cpu {
namespace {

// Query rows of a block, the lanes of its panels: whole tiles for every compute type.
constexpr int64_t kRows = kVectorBytes == 64 ? 64 : 48, kMostRows = 96;

template <class C>
inline void clear_padding(C* row, int64_t n) {
  for (int64_t i = n; i < padded<C>(n); ++i) row[i] = 0;
}

constexpr int64_t kKeys = 96;  // keys of a block: a panel block and a strip of V share the L1 cache

// What a block of rows sees.
struct Sight {
  Range visible[kMostRows];  // of each row; empty for lanes beyond the rows
  Range keys;  // from the start of the first block of keys in sight to the last such key

  Sight(const Sequence& s, const Window& window, Range rows, int64_t lanes) : keys{s.sk, 0} {
    for (int64_t r = 0; r < lanes; ++r) {
      visible[r] = r < rows.size() ? visible_keys(s, window, rows.begin + r) : Range{0, 0};
      if (visible[r].size() == 0) continue;
      if (visible[r].begin < keys.begin) keys.begin = visible[r].begin;
      if (visible[r].end > keys.end) keys.end = visible[r].end;
    }
    keys.begin -= keys.begin % kKeys;
    if (keys.size() == 0) keys = {0, 0};
  }
};

// Rows of a block: fewer when the panels of long sequences would not stay in cache.
template <class C>
int64_t block_rows(int64_t seqlen_q, int64_t seqlen_k, int panels) {
  constexpr int64_t kPanelBytes = 16 << 20;
  const bool fits = seqlen_k <= kPanelBytes / (kRows * panels * int64_t(sizeof(C)));
  return fits && seqlen_q > NR<float> ? kRows : NR<float>;
}

// Numbers of a panel [keys][lanes] that can hold every block of a sequence.
inline int64_t panel_size(int64_t seqlen_k, int64_t lanes) {
  return product(round_up(seqlen_k, kKeys), lanes);
}

inline Range block_of(Range keys, int64_t j) { return meet({j, j + kKeys}, keys); }

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
    if (j + kAhead < keys.end) fetch_row(t, rows.view.data, rows.offset(j + kAhead), n);
    load_row<C>(t, rows.view.data, rows.offset(j), n, dst);
    clear_padding(dst, n);
  }
}

// dst [rows.size()][leading(n)] = those rows of head h, component comp.
template <class C>
void load_queries(DType t, const View& v, const Sequence& s, int64_t h, int64_t comp, Range rows,
                  int64_t n, C* dst) {
  for (int64_t i = rows.begin; i < rows.end; ++i, dst += leading<C>(n)) {
    if (i + kAhead < rows.end) fetch_row(t, v.data, offset(v, s, i + kAhead, h, comp), n);
    load_row<C>(t, v.data, offset(v, s, i, h, comp), n, dst);
    clear_padding(dst, n);
  }
}

// Rotates queries to the positions of the keys that are appended with them; all to the first of
// these if no mask tells rows apart. Params: FwdParams or DecodeParams.
template <class C, class Params>
void rotate_rows(const Params& p, const Cache& cache, const Sequence& s, Range rows, C* natural) {
  const bool ordered = p.window.left >= 0 || p.window.right >= 0;
  const int64_t first = s.sk - cache.seqlen_new, d = p.shape.headdim;
  for (int64_t i = rows.begin; i < rows.end; ++i, natural += leading<C>(d))
    rotate(p.dtype, cache.rotary, first + (ordered ? i : 0), d, natural);
}

// dst [lanes / NR][n][NR] = factor · src [count][leading(n)] transposed; lanes >= count are 0.
template <class C>
void transpose(const C* src, int64_t count, int64_t lanes, int64_t n, C factor, C* dst) {
  for (int64_t r0 = 0; r0 < lanes; r0 += NR<C>, dst += n * NR<C>)
    for (int64_t r = 0; r < NR<C>; ++r) {
      const C* row = src + (r0 + r) * leading<C>(n);
      if (r0 + r < count)
        for (int64_t i = 0; i < n; ++i) dst[i * NR<C> + r] = factor * row[i];
      else
        for (int64_t i = 0; i < n; ++i) dst[i * NR<C> + r] = 0;
    }
}

// What queries are multiplied by, so that their products with keys are scores in log2 units. Nothing is
// multiplied afterwards: a score and the maximum it is compared with are the same number, rounded once,
// and 2^(score - max) of the largest is exactly 1, however large the scores are.
template <class C>
inline C query_factor(double softmax_scale) {
  return C(softmax_scale * kLog2e<double>);
}

// panel [n_keys][lanes] = A [n_keys][d] · B [lanes / NR][d][NR], except where none of NR lanes sees
// any of MR keys: lanes r .. r + NR see keys of seen[r / NR] only.
template <class C>
void product_to_panel(int64_t n_keys, int64_t d, Operand<C> a, const C* b, int64_t lanes,
                      const Range* seen, C* panel) {
  by_tiles(n_keys, [&](int64_t j, int count) {
    for (int64_t r = 0; r < lanes; r += NR<C>)
      if (meet(seen[r / NR<C>], {j, j + count}).size())
        tile<C, Into::overwrite>(count, d, {a.data + j * a.row, a.row, a.k}, {b + r * d, 0, NR<C>},
                                 panel + j * lanes + r, lanes);
  });
}

}  // namespace
}  // namespace diffattn::cpu
