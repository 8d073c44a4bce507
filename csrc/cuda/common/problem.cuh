// Which part of the problem a CTA has, and which keys its rows see.
#pragma once
#include <cstdint>

#include "limits.h"

namespace diffattn::cuda {

// Bytes from an element of the signal's map to that of the noise's: both views have the same strides.
__device__ inline int64_t bytes_to_noise(const View& signal, const View& noise) {
  return static_cast<const char*>(noise.data) - static_cast<const char*>(signal.data);
}

// One sequence of the batch: where its rows begin in the tensors, and how many they are.
struct Sequence {
  int64_t batch;  // index of the batch dimension, 0 where sequences are packed
  int64_t q_begin, k_begin;
  int seqlen_q, seqlen_k;

  __device__ Sequence(const Shape& shape, const Varlen& varlen, int64_t b)
      : batch(b),
        q_begin(0),
        k_begin(0),
        seqlen_q(int(shape.seqlen_q)),
        seqlen_k(int(shape.seqlen_k)) {
    if (!varlen.cu_seqlens_q) return;
    batch = 0;
    clamp(varlen.cu_seqlens_q + b, varlen.total_q, q_begin, seqlen_q);
    clamp(varlen.cu_seqlens_k + b, varlen.total_k, k_begin, seqlen_k);
  }

  // Element offset of a tensor's first row of this sequence.
  __device__ int64_t q_offset(const View& v) const { return batch * v.batch + q_begin * v.row; }
  __device__ int64_t k_offset(const View& v) const { return batch * v.batch + k_begin * v.row; }

 private:
  // cu_seqlens cannot be checked without a synchronisation: whatever it holds, stay inside.
  __device__ static void clamp(const int32_t* cu, int64_t total, int64_t& begin, int& length) {
    begin = min(max(int64_t(cu[0]), int64_t(0)), total);
    const int64_t end = min(max(int64_t(cu[1]), begin), total);
    length = int(min(end - begin, int64_t(length)));
  }
};

// Row i sees the keys begin(i) <= j < end(i). Causal and windowed masks are both of this form.
class KeyInterval {
 public:
  // Of the keys first_key <= j < end_key it is i + first <= j < i + end.
  __device__ KeyInterval(int first_key, int end_key, int seqlen_q, int first, int end)
      : first_key_(first_key), end_key_(end_key), seqlen_q_(seqlen_q), first_(first), end_(end) {}

  __device__ int first_key() const { return first_key_; }
  __device__ int end_key() const { return end_key_; }
  __device__ int begin(int row) const { return max(row + first_, first_key_); }
  __device__ int end(int row) const { return min(row + end_, end_key_); }

  // Key j is seen by the rows row_begin(j) <= i < row_end(j).
  __device__ int row_begin(int key) const { return max(key - end_ + 1, 0); }
  __device__ int row_end(int key) const { return min(last_row(key) + 1, seqlen_q_); }

  // The last row that would see a key if there were no last row of the sequence.
  __device__ int last_row(int key) const { return key - first_; }

 private:
  int first_key_, end_key_, seqlen_q_, first_, end_;
};

__device__ inline bool streams(const Mask& mask, int head_k) {
  return mask.streaming >> head_k % 64 & 1;
}

// Which keys the rows of one KV head see: an interval, or two. A head that streams with sinks has one of the
// sinks and one of the window behind them. They share no key, so a kernel takes one after the other.
class HeadMask {
 public:
  __device__ HeadMask(const Mask& mask, int head_k, int seqlen_q, int seqlen_k, int first_key = 0)
      : HeadMask(mask, mask.left >= 0 && streams(mask, head_k), seqlen_q, seqlen_k, first_key) {}
  __device__ HeadMask(const Mask& mask, int head_k, const Sequence& sequence)
      : HeadMask(mask, head_k, sequence.seqlen_q, sequence.seqlen_k) {}

  __device__ KeyInterval sinks() const {
    return {first_key_, sink_end_, seqlen_q_, -kUnbounded, end_};
  }
  __device__ KeyInterval window() const { return {sink_end_, seqlen_k_, seqlen_q_, first_, end_}; }

  // The sinks, where some row up to last_row has hidden keys between them and its window, which then
  // follows; else all keys.
  __device__ KeyInterval first(int last_row) const {
    if (sink_end_ == first_key_) return window();
    return last_row + first_ > sink_end_
               ? sinks()
               : KeyInterval(first_key_, seqlen_k_, seqlen_q_, -kUnbounded, end_);
  }

 private:
  static constexpr int kUnbounded = 1 << 30;
  __device__ static int bounded(int64_t side) { return int(min(side, int64_t(kMaxSeqlen))); }

  __device__ HeadMask(const Mask& mask, bool has_window, int seqlen_q, int seqlen_k, int first_key)
      : first_key_(first_key),
        sink_end_(has_window ? min(first_key + bounded(mask.sink), seqlen_k) : first_key),
        seqlen_q_(seqlen_q),
        seqlen_k_(seqlen_k),
        first_(has_window ? seqlen_k - seqlen_q - bounded(mask.left) : -kUnbounded),
        end_(mask.right < 0 ? kUnbounded : seqlen_k - seqlen_q + bounded(mask.right) + 1) {}

  int first_key_, sink_end_, seqlen_q_, seqlen_k_, first_, end_;
};

// The KV heads of one kind: those that see every key, which come first because they take longest, or those that
// stream.
struct HeadKind {
  bool full;
  uint64_t heads;  // bit h: KV head h is one of them; all bits set: every head is

  __device__ HeadKind(const Mask& mask, bool full)
      : full(full), heads(full ? ~mask.streaming : mask.streaming) {}

  // That of the n-th CTA, if each full head of a sequence has so many; n becomes its number among those of the kind.
  __device__ static HeadKind of(const Mask& mask, const Shape& shape, unsigned of_full_head,
                                unsigned& n) {
    const unsigned all_full =
        HeadKind(mask, true).count(shape) * of_full_head * unsigned(shape.batch);
    const HeadKind kind(mask, n < all_full);
    if (!kind.full) n -= all_full;
    return kind;
  }

  __device__ unsigned count(const Shape& shape) const {
    const unsigned full_heads = unsigned(__popcll(full ? heads : ~heads));
    return full ? full_heads : unsigned(shape.nheads_k) - full_heads;
  }

  __device__ int head_k(unsigned rank) const {
    if (heads == ~uint64_t(0)) return int(rank);
    uint64_t rest = heads;
    for (; rank > 0; --rank) rest &= rest - 1;
    return __ffsll(int64_t(rest)) - 1;
  }
};

// The n-th of the query heads of a batch.
struct HeadOfBatch {
  int batch, head;

  __device__ HeadOfBatch(const Mask& mask, const Shape& shape, unsigned n) {
    const unsigned group = unsigned(shape.nheads) / unsigned(shape.nheads_k);
    const HeadKind kind = HeadKind::of(mask, shape, group, n);
    const unsigned heads = kind.count(shape) * group;
    batch = int(n / heads);
    head = int(kind.head_k(n % heads / group) * group + n % heads % group);
  }
};

// The steps of `rows` rows that see some of `keys` keys from first_key on, and those whose every row
// sees all of them. Rows behind the last may count as seeing.
struct RowSteps {
  int begin, end, full_begin, full_end;

  __device__ RowSteps(const KeyInterval& mask, int first_key, int keys, int rows) {
    const int end_key = first_key + keys;
    const int first_row = mask.row_begin(first_key);
    const int end_row = mask.row_end(min(end_key, mask.end_key()) - 1);
    begin = first_row / rows;
    end = first_key < mask.end_key() && first_row < end_row ? (end_row + rows - 1) / rows : begin;
    full_begin = (mask.row_begin(end_key - 1) + rows - 1) / rows;
    full_end = end_key <= mask.end_key() ? max(mask.last_row(first_key) + 1, 0) / rows : 0;
  }

  __device__ bool is_full(int step) const { return step >= full_begin && step < full_end; }
};

}  // namespace diffattn::cuda
