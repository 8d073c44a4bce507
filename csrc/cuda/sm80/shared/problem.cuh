// Which part of the problem a CTA has, and which keys its rows see.
#pragma once
#include <cstdint>

#include "../../common/limits.h"

namespace diffattn::cuda::sm80 {

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
class SequenceMask {
 public:
  __device__ SequenceMask(const Mask& mask, int seqlen_q, int seqlen_k, int first_key = 0)
      : first_key_(first_key),
        seqlen_q_(seqlen_q),
        seqlen_k_(seqlen_k),
        first_(mask.left < 0 ? -kUnbounded : seqlen_k - seqlen_q - bounded(mask.left)),
        end_(mask.right < 0 ? kUnbounded : seqlen_k - seqlen_q + bounded(mask.right) + 1) {}

  __device__ int begin(int row) const { return max(row + first_, first_key_); }
  __device__ int end(int row) const { return min(row + end_, seqlen_k_); }

  // Key j is seen by the rows row_begin(j) <= i < row_end(j).
  __device__ int row_begin(int key) const { return max(key - end_ + 1, 0); }
  __device__ int row_end(int key) const { return min(last_row(key) + 1, seqlen_q_); }

  // The last row that would see a key if there were no last row of the sequence.
  __device__ int last_row(int key) const { return key - first_; }

 private:
  static constexpr int kUnbounded = 1 << 30;
  __device__ static int bounded(int64_t side) { return int(min(side, int64_t(kMaxSeqlen))); }

  int first_key_, seqlen_q_, seqlen_k_, first_, end_;
};

// The keys that rows [first_row, end_row) see; none if there are no rows.
struct KeyRange {
  int begin, end;            // of some row, and perhaps hidden ones between them
  int full_begin, full_end;  // of every row

  __device__ KeyRange(const SequenceMask& mask, int first_row, int end_row)
      : begin(mask.begin(first_row)),
        end(first_row < end_row ? mask.end(end_row - 1) : 0),
        full_begin(mask.begin(end_row - 1)),
        full_end(first_row < end_row ? mask.end(first_row) : 0) {}

  __device__ void none_is_full() { full_end = 0; }

  __device__ bool meets(int first_key, int keys) const {
    return first_key < end && begin < first_key + keys;
  }
  __device__ bool fully_has(int first_key, int keys) const {
    return first_key >= full_begin && first_key <= full_end - keys;
  }
};

// The steps of `rows` rows that see some of `keys` keys from first_key on, and those whose every row
// sees all of them. Rows behind the last may count as seeing.
struct RowSteps {
  int begin, end, full_begin, full_end;

  __device__ RowSteps(const SequenceMask& mask, int first_key, int keys, int seqlen_k, int rows) {
    const int end_key = first_key + keys;
    const int first_row = mask.row_begin(first_key);
    const int end_row = mask.row_end(min(end_key, seqlen_k) - 1);
    begin = first_row / rows;
    end = first_key < seqlen_k && first_row < end_row ? (end_row + rows - 1) / rows : begin;
    full_begin = (mask.row_begin(end_key - 1) + rows - 1) / rows;
    full_end = end_key <= seqlen_k ? max(mask.last_row(first_key) + 1, 0) / rows : 0;
  }

  __device__ bool is_full(int step) const { return step >= full_begin && step < full_end; }
};

}  // namespace diffattn::cuda::sm80
