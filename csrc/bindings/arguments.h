// The ops' arguments, in the order of their schemas (schemas.cpp). A backend's function takes them as one
// struct; what is registered is from_schema of that function.
#pragma once
#include <tuple>

#include "checks.h"

namespace diffattn::bindings {

// out, lse, o, o2, rstd of fwd; dq, dk, dv, dlam, dnorm_weight of bwd.
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

struct FwdArguments {
  Tensor q, k, v, lam;
  OptionalTensor norm_weight, cu_seqlens_q, cu_seqlens_k;
  int64_t max_seqlen_q, max_seqlen_k;
  double softmax_scale;
  int64_t window_left, window_right, sink_size, streaming_heads;
  std::optional<double> norm_eps;
  double out_scale;
  bool deterministic;
};

struct Saved {
  Tensor dout;
  OptionalTensor dlse;
  Tensor o, o2, lse, rstd;
};

struct DecodeArguments {
  Tensor q, k_cache, v_cache, lam;
  OptionalTensor k, v, cos, sin, seqlens, batch_idx, leftpad, block_table, norm_weight;
  double softmax_scale;
  int64_t window_left, window_right, sink_size, streaming_heads;
  bool rotary_interleaved;
  std::optional<double> norm_eps;
  double out_scale;
  int64_t num_splits;
};

template <Outputs (*fwd)(const FwdArguments&, bool training)>
Outputs fwd_from_schema(Tensor q, Tensor k, Tensor v, Tensor lam, OptionalTensor norm_weight,
                        OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                        int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
                        int64_t window_left, int64_t window_right, int64_t sink_size,
                        int64_t streaming_heads, std::optional<double> norm_eps, double out_scale,
                        bool deterministic, bool training) {
  return fwd({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
              softmax_scale, window_left, window_right, sink_size, streaming_heads, norm_eps,
              out_scale, deterministic},
             training);
}

template <Outputs (*bwd)(const FwdArguments&, Saved)>
Outputs bwd_from_schema(Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam,
                        OptionalTensor norm_weight, Tensor o, Tensor o2, Tensor lse, Tensor rstd,
                        OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                        int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
                        int64_t window_left, int64_t window_right, int64_t sink_size,
                        int64_t streaming_heads, std::optional<double> norm_eps, double out_scale,
                        bool deterministic) {
  return bwd({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
              softmax_scale, window_left, window_right, sink_size, streaming_heads, norm_eps,
              out_scale, deterministic},
             {dout, dlse, o, o2, lse, rstd});
}

template <std::tuple<Tensor, Tensor> (*decode)(const DecodeArguments&)>
std::tuple<Tensor, Tensor> decode_from_schema(
    Tensor q, Tensor k_cache, Tensor v_cache, Tensor lam, OptionalTensor k, OptionalTensor v,
    OptionalTensor rotary_cos, OptionalTensor rotary_sin, OptionalTensor cache_seqlens,
    OptionalTensor cache_batch_idx, OptionalTensor cache_leftpad, OptionalTensor block_table,
    OptionalTensor norm_weight, double softmax_scale, int64_t window_left, int64_t window_right,
    int64_t sink_size, int64_t streaming_heads, bool rotary_interleaved,
    std::optional<double> norm_eps, double out_scale, int64_t num_splits) {
  return decode({q,
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
                 softmax_scale,
                 window_left,
                 window_right,
                 sink_size,
                 streaming_heads,
                 rotary_interleaved,
                 norm_eps,
                 out_scale,
                 num_splits});
}

}  // namespace diffattn::bindings
