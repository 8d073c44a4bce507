// Decoding: from tensors to the params of the CUDA kernels. The launch is left open, as in cuda.h.
#pragma once
#include "cache_values.h"
#include "cuda.h"

namespace diffattn::bindings {

using DecodeLaunch = void (*)(const DecodeParams& p, const Tensor& q);

// How much the kernels want depends on the current device, which has to be theirs.
inline Tensor new_workspace(const DecodeParams& p, const Tensor& q) {
  const int64_t numbers = cuda::decode_workspace(p) / int64_t(sizeof(float));
  return torch::stable::new_empty(q, {numbers}, ScalarType::Float);
}

// The kernels read whole blocks of 16 keys, none of which may cross a page.
constexpr PageSizes kPageSizes{[](int64_t page) { return page > 0 && page % 16 == 0; },
                               "multiples of 16"};

inline void check_aligned(const char* name, const Tensor& t) {
  check(is_aligned(t), name, " must begin at a multiple of 16 bytes, and so must its rows: it is ",
        "written in place, never copied");
}

inline KvCache for_kernel(KvCache c) {
  const auto aligned = [](const OptionalTensor& t) {
    return t ? OptionalTensor(with_aligned_rows(*t)) : t;
  };
  check_kernel_dtype(c.q);
  c.check_all(kPageSizes);
  if (values_are_wanted()) CacheValues checked(c);
  check_aligned("k_cache", c.k_cache);
  check_aligned("v_cache", c.v_cache);
  c.q = with_aligned_rows(c.q);
  c.k = aligned(c.k);
  c.v = aligned(c.v);
  c.norm_weight = aligned(c.norm_weight);
  return c;
}

template <DecodeLaunch launch>
std::tuple<Tensor, Tensor> cuda_decode(
    Tensor q, Tensor k_cache, Tensor v_cache, Tensor lam, OptionalTensor k, OptionalTensor v,
    OptionalTensor rotary_cos, OptionalTensor rotary_sin, OptionalTensor cache_seqlens,
    OptionalTensor cache_batch_idx, OptionalTensor cache_leftpad, OptionalTensor block_table,
    OptionalTensor norm_weight, double softmax_scale, int64_t window_left, int64_t window_right,
    bool rotary_interleaved, std::optional<double> norm_eps, double out_scale, int64_t num_splits) {
  const KvCache c = for_kernel(KvCache{q,
                                       k_cache,
                                       v_cache,
                                       lam,
                                       k,
                                       v,
                                       rotary_cos,
                                       rotary_sin,
                                       cache_seqlens,
                                       cache_batch_idx,
                                       cache_leftpad,
                                       block_table,
                                       norm_weight,
                                       norm_eps,
                                       window_left,
                                       window_right,
                                       {}});
  Tensor out = c.new_output(), lse = c.new_statistics();
  const DecodeParams p =
      params_of(c, out, lse, softmax_scale, rotary_interleaved, out_scale, num_splits);
  if (c.shape.batch > 0) launch(p, c.q);
  return {out, lse};
}

}  // namespace diffattn::bindings
