// Which part of the problem a CTA has, and which keys its rows see.
#pragma once
#include <cstdint>

#include "../device.h"

namespace diffattn::cuda::sm80 {

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
class Sight {
 public:
  __device__ Sight(const Window& window, int seqlen_q, int seqlen_k, int first_key = 0)
      : first_key_(first_key),
        seqlen_k_(seqlen_k),
        first_(window.left < 0 ? -kUnbounded : seqlen_k - seqlen_q - bounded(window.left)),
        end_(window.right < 0 ? kUnbounded : seqlen_k - seqlen_q + bounded(window.right) + 1) {}

  __device__ int begin(int row) const { return max(row + first_, first_key_); }
  __device__ int end(int row) const { return min(row + end_, seqlen_k_); }

 private:
  static constexpr int kUnbounded = 1 << 30;
  __device__ static int bounded(int64_t side) { return int(min(side, int64_t(kMaxSeqlen))); }

  int first_key_, seqlen_k_, first_, end_;
};

// The steps of kKeys keys that rows [first_row, end_row) visit, and those that need no mask.
struct Steps {
  int begin, end;            // [begin, end): some row sees some key
  int full_begin, full_end;  // every row sees every key

  __device__ Steps(const Sight& sight, int first_row, int end_row, int keys) {
    begin = sight.begin(first_row) / keys;
    end = (max(sight.end(end_row - 1), 0) + keys - 1) / keys;
    full_begin = (sight.begin(end_row - 1) + keys - 1) / keys;
    full_end = max(sight.end(first_row), 0) / keys;
  }

  __device__ bool is_full(int step) const { return step >= full_begin && step < full_end; }
};

}  // namespace diffattn::cuda::sm80
