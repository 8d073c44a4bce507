// The values of cu_seqlens, where they can be read: always on the CPU, on CUDA at the cost of a sync.
#pragma once
#include "attention.h"

namespace diffattn::bindings {

// cu: [batch + 1] in host memory. Returns the longest length.
inline int64_t check_cu_seqlens(const char* name, const int32_t* cu, int64_t batch, int64_t total,
                                const char* total_name, int64_t max_seqlen, const char* max_name) {
  int64_t longest = 0;
  check(cu[0] == 0, name, "[0] is ", cu[0], ", expected 0");
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = int64_t(cu[b + 1]) - cu[b];
    check(length >= 0, name, " must not decrease: ", name, "[", b, "] is ", cu[b], ", ", name, "[",
          b + 1, "] is ", cu[b + 1]);
    check(length <= max_seqlen, max_name, " is ", max_seqlen, ", but sequence ", b, " has length ",
          length);
    longest = length > longest ? length : longest;
  }
  check(cu[batch] == total, name, "[-1] is ", cu[batch], ", expected ", total_name, " = ", total);
  return longest;
}

// max_seqlen_q and max_seqlen_k are only bounds; work and memory follow the actual lengths.
inline void check_values(Attention& a) {
  if (!a.packed) return;
  const torch::stable::Device host(torch::headeronly::DeviceType::CPU);
  const Tensor cu_q = torch::stable::to(*a.cu_seqlens_q, host);
  const Tensor cu_k = torch::stable::to(*a.cu_seqlens_k, host);
  a.shape.seqlen_q = check_cu_seqlens("cu_seqlens_q", int32_data(cu_q), a.shape.batch, a.total_q(),
                                      "total_q", a.shape.seqlen_q, "max_seqlen_q");
  a.shape.seqlen_k = check_cu_seqlens("cu_seqlens_k", int32_data(cu_k), a.shape.batch, a.total_k(),
                                      "total_k", a.shape.seqlen_k, "max_seqlen_k");
}

}  // namespace diffattn::bindings
