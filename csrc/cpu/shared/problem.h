// Where the rows and keys of a part of the problem lie.
#pragma once
#include "convert.h"
#include "intervals.h"
#include "scratch.h"

namespace diffattn::cpu {
namespace {

// Query rows of a block, the lanes of its panels: whole tiles for every compute type.
constexpr int64_t kRows = kVectorBytes == 64 ? 64 : 48, kMostRows = 96;

constexpr int64_t kKeys = 96;  // keys of a block: a panel block and a strip of V share the L1 cache

// Numbers [keys][lanes]; each query row is a lane.
template <class T>
struct Panel {
  T* data;
  int64_t lanes;
  T* operator[](int64_t key) const { return data + key * lanes; }
};

// One sequence of the batch: its rows are q_begin .. q_begin + seqlen_q of the tensors, and its keys
// likewise.
struct Sequence {
  int64_t batch;  // in q, out, λ, LSE
  int64_t q_begin, seqlen_q;
  int64_t k_begin, seqlen_k;
  int64_t k_batch;    // batch index of its keys
  int64_t first_key;  // no row sees those before it, which are padding
  int64_t
      uncounted;  // keys before the first that is counted: the padding, of which a ring knows nothing
};

inline Sequence sequence(const Shape& shape, const Varlen& varlen, const Cache& cache, int64_t b) {
  Sequence s{b, 0, shape.seqlen_q, 0, shape.seqlen_k, b, 0, 0};
  if (varlen.cu_seqlens_q) {
    s.q_begin = varlen.cu_seqlens_q[b];
    s.seqlen_q = varlen.cu_seqlens_q[b + 1] - s.q_begin;
    s.k_begin = varlen.cu_seqlens_k[b];
    s.seqlen_k = varlen.cu_seqlens_k[b + 1] - s.k_begin;
  }
  if (cache.seqlens) s.seqlen_k = cache.seqlens[b] + cache.seqlen_new;
  if (cache.batch_idx) s.k_batch = cache.batch_idx[b];
  if (cache.leftpad) s.first_key = cache.leftpad[b];
  if (cache.ring.slots) {
    s.uncounted = s.first_key;
    s.seqlen_k -= s.first_key;
    s.first_key = 0;
  }
  return s;
}

// Some query rows of one head, or of one group of maps.
struct RowBlock {
  Sequence sequence;
  int64_t head, kv_head;
  Range rows;

  // Element offset of row i of the sequence in a tensor laid out by query rows.
  int64_t offset(const View& v, int64_t i) const {
    return v.batch * sequence.batch + v.row * (sequence.q_begin + i) + v.head * head;
  }
};

// A view of signal i of each group, given that of the first.
inline View of_signal(View v, DType t, int64_t i, int64_t stride) {
  v.data = element(t, v.data, i * stride);
  return v;
}

inline int64_t slot_of(const Ring& ring, int64_t key) {
  return key < ring.sink_slots ? key : ring.sink_slots + (key - ring.sink_slots) % ring.slots;
}
// Whether no later one of so many keys has taken the slot of this one.
inline bool keeps(const Ring& ring, int64_t key, int64_t keys) {
  return key < ring.sink_slots || key >= keys - ring.slots;
}

// The keys or values of one sequence and one KV head, contiguous, in pages or in a ring.
struct KeyRows {
  const View& view;
  const Cache& cache;
  const Sequence& seq;
  int64_t head;  // of the view

  int64_t offset(int64_t j) const {
    const int64_t base = view.head * head;
    if (cache.ring.slots)
      return base + view.batch * seq.k_batch + view.row * slot_of(cache.ring, j);
    const Paging& paging = cache.paging;
    if (!paging.block_table) return base + view.batch * seq.k_batch + view.row * (seq.k_begin + j);
    const int64_t page = paging.block_table[paging.stride * seq.batch + j / paging.page_size];
    return base + view.batch * page + view.row * (j % paging.page_size);
  }
};

// Calls f(column, where it begins, how long it is) for what lies together of a row of n numbers: all, or each half.
template <class F>
inline void for_pieces(const View& v, int64_t n, const F& f) {
  if (v.half == n / 2) return f(0, 0, n);
  f(0, 0, n / 2);
  f(n / 2, v.half, n / 2);
}
inline int64_t longest_piece(const View& v, int64_t n) { return v.half == n / 2 ? n : n / 2; }

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
