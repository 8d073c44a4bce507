// One sequence of the batch as the kernels see it: where its rows lie and which keys a row sees.
#pragma once
#include "convert.h"
#include "gemm.h"

namespace diffattn::cpu {
namespace {

struct Sequence {
  int64_t b;        // in q, out, λ, LSE
  int64_t q0, sq;   // its rows are q0 .. q0 + sq
  int64_t k0, sk;   // its keys are k0 .. k0 + sk
  int64_t kb;       // batch index of its keys
  int64_t leftpad;  // keys before this one are invisible
};

inline Sequence sequence(const Shape& shape, const Varlen& varlen, const Cache& cache, int64_t b) {
  Sequence s{b, 0, shape.seqlen_q, 0, shape.seqlen_k, b, 0};
  if (varlen.cu_seqlens_q) {
    s.q0 = varlen.cu_seqlens_q[b];
    s.sq = varlen.cu_seqlens_q[b + 1] - s.q0;
    s.k0 = varlen.cu_seqlens_k[b];
    s.sk = varlen.cu_seqlens_k[b + 1] - s.k0;
  }
  if (cache.seqlens) s.sk = cache.seqlens[b] + cache.seqlen_new;
  if (cache.batch_idx) s.kb = cache.batch_idx[b];
  if (cache.leftpad) s.leftpad = cache.leftpad[b];
  return s;
}

// Keys that row i sees: a range, causal and windowed masks alike, aligned bottom-right.
inline Range visible_keys(const Sequence& s, const Mask& w, int64_t i) {
  const int64_t diagonal = i + s.sk - s.sq;
  Range r{s.leftpad, s.sk};
  if (w.left >= 0) r = meet(r, {diagonal - w.left, s.sk});
  if (w.right >= 0) r = meet(r, {0, diagonal + w.right + 1});
  return r.size() ? r : Range{0, 0};
}

// Rows that see key j.
inline Range visible_rows(const Sequence& s, const Mask& w, int64_t j) {
  const int64_t diagonal = j - s.sk + s.sq;
  Range r{0, j < s.leftpad ? 0 : s.sq};
  if (w.left >= 0) r = meet(r, {0, diagonal + w.left + 1});
  if (w.right >= 0) r = meet(r, {diagonal - w.right, s.sq});
  return r.size() ? r : Range{0, 0};
}

// Element offset of row i of head h in a tensor laid out by query rows.
inline int64_t offset(const View& v, const Sequence& s, int64_t i, int64_t h) {
  return v.batch * s.b + v.row * (s.q0 + i) + v.head * h;
}

// The keys or values of one sequence and one KV head, contiguous or in pages.
struct KeyRows {
  const View& view;
  const Paging& paging;
  const Sequence& seq;
  int64_t head;

  int64_t offset(int64_t j) const {
    const int64_t base = view.head * head;
    if (!paging.block_table) return base + view.batch * seq.kb + view.row * (seq.k0 + j);
    const int64_t page = paging.block_table[paging.stride * seq.b + j / paging.page_size];
    return base + view.batch * page + view.row * (j % paging.page_size);
  }
};

template <class C>
inline C number(const View& v, int64_t at) {
  return static_cast<const C*>(v.data)[at];
}

template <class C>
inline void put(const View& v, int64_t at, C x) {
  static_cast<C*>(v.data)[at] = x;
}

}  // namespace
}  // namespace diffattn::cpu
