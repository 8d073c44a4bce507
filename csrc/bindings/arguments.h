// The ops' arguments, in the order of their schemas (schemas.cpp). A backend's function takes them as one
// struct; what is registered is from_schema of that function.
#pragma once
#include <tuple>

#include "checks.h"

namespace diffattn::bindings {

// out, lse, o, o2, rstd of fwd; dq, dk, dv, dlam, dnorm_weight of bwd.
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
// out or each map's o, and lse.
using OutAndLse = std::tuple<Tensor, Tensor>;
// dq, dk, dv of bwd_partial.
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// lam is absent where the op has none: components have neither lambda nor norm.
struct FwdArguments {
  Tensor q, k, v;
  OptionalTensor lam, norm_weight, cu_seqlens_q, cu_seqlens_k;
  int64_t max_seqlen_q, max_seqlen_k;
  double softmax_scale;
  int64_t window_left, window_right, sink_size, streaming_heads;
  std::optional<double> norm_eps;
  double out_scale;
  bool deterministic;
  double softcap;
};

struct Saved {
  Tensor dout;
  OptionalTensor dlse;
  Tensor o, o2, lse, rstd;
};

struct PartialSaved {
  Tensor dout, dlse, lse;
};

struct DecodeArguments {
  Tensor q, k_cache, v_cache;
  OptionalTensor lam, k, v, cos, sin, seqlens, batch_idx, leftpad, block_table, norm_weight;
  double softmax_scale;
  int64_t window_left, window_right, sink_size, streaming_heads;
  bool rotary_interleaved;
  std::optional<double> norm_eps;
  double out_scale;
  int64_t num_splits;
  OptionalTensor k_stream, v_stream;
  double softcap;
};

template <Outputs (*fwd)(const FwdArguments&, bool training)>
Outputs fwd_from_schema(Tensor q, Tensor k, Tensor v, Tensor lam, OptionalTensor norm_weight,
                        OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                        int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
                        int64_t window_left, int64_t window_right, int64_t sink_size,
                        int64_t streaming_heads, std::optional<double> norm_eps, double out_scale,
                        bool deterministic, bool training, double softcap) {
  return fwd({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
              softmax_scale, window_left, window_right, sink_size, streaming_heads, norm_eps,
              out_scale, deterministic, softcap},
             training);
}

template <Outputs (*bwd)(const FwdArguments&, Saved)>
Outputs bwd_from_schema(Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam,
                        OptionalTensor norm_weight, Tensor o, Tensor o2, Tensor lse, Tensor rstd,
                        OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                        int64_t max_seqlen_q, int64_t max_seqlen_k, double softmax_scale,
                        int64_t window_left, int64_t window_right, int64_t sink_size,
                        int64_t streaming_heads, std::optional<double> norm_eps, double out_scale,
                        bool deterministic, double softcap) {
  return bwd({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
              softmax_scale, window_left, window_right, sink_size, streaming_heads, norm_eps,
              out_scale, deterministic, softcap},
             {dout, dlse, o, o2, lse, rstd});
}

template <OutAndLse (*components)(const FwdArguments&)>
OutAndLse components_from_schema(Tensor q, Tensor k, Tensor v, OptionalTensor cu_seqlens_q,
                                 OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
                                 int64_t max_seqlen_k, double softmax_scale, int64_t window_left,
                                 int64_t window_right, int64_t sink_size, int64_t streaming_heads,
                                 bool deterministic, double softcap) {
  return components({q,
                     k,
                     v,
                     {},
                     {},
                     cu_seqlens_q,
                     cu_seqlens_k,
                     max_seqlen_q,
                     max_seqlen_k,
                     softmax_scale,
                     window_left,
                     window_right,
                     sink_size,
                     streaming_heads,
                     {},
                     1,
                     deterministic,
                     softcap});
}

template <Gradients (*bwd)(const FwdArguments&, PartialSaved)>
Gradients bwd_partial_from_schema(Tensor dout, Tensor dlse, Tensor q, Tensor k, Tensor v,
                                  Tensor lam, Tensor lse, OptionalTensor cu_seqlens_q,
                                  OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
                                  int64_t max_seqlen_k, double softmax_scale, int64_t window_left,
                                  int64_t window_right, int64_t sink_size, int64_t streaming_heads,
                                  bool deterministic, double softcap) {
  return bwd({q,
              k,
              v,
              lam,
              {},
              cu_seqlens_q,
              cu_seqlens_k,
              max_seqlen_q,
              max_seqlen_k,
              softmax_scale,
              window_left,
              window_right,
              sink_size,
              streaming_heads,
              {},
              1,
              deterministic,
              softcap},
             {dout, dlse, lse});
}

template <OutAndLse (*decode)(const DecodeArguments&)>
OutAndLse decode_from_schema(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lam, OptionalTensor k,
                             OptionalTensor v, OptionalTensor rotary_cos, OptionalTensor rotary_sin,
                             OptionalTensor cache_seqlens, OptionalTensor cache_batch_idx,
                             OptionalTensor cache_leftpad, OptionalTensor block_table,
                             OptionalTensor norm_weight, double softmax_scale, int64_t window_left,
                             int64_t window_right, int64_t sink_size, int64_t streaming_heads,
                             bool rotary_interleaved, std::optional<double> norm_eps,
                             double out_scale, int64_t num_splits, OptionalTensor k_stream,
                             OptionalTensor v_stream, double softcap) {
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
                 num_splits,
                 k_stream,
                 v_stream,
                 softcap});
}

template <OutAndLse (*decode)(const DecodeArguments&)>
OutAndLse decode_components_from_schema(
    Tensor q, Tensor k_cache, Tensor v_cache, OptionalTensor k, OptionalTensor v,
    OptionalTensor rotary_cos, OptionalTensor rotary_sin, OptionalTensor cache_seqlens,
    OptionalTensor cache_batch_idx, OptionalTensor cache_leftpad, OptionalTensor block_table,
    double softmax_scale, int64_t window_left, int64_t window_right, int64_t sink_size,
    int64_t streaming_heads, bool rotary_interleaved, int64_t num_splits, OptionalTensor k_stream,
    OptionalTensor v_stream, double softcap) {
  return decode({q,
                 k_cache,
                 v_cache,
                 {},
                 k,
                 v,
                 rotary_cos,
                 rotary_sin,
                 cache_seqlens,
                 cache_batch_idx,
                 cache_leftpad,
                 block_table,
                 {},
                 softmax_scale,
                 window_left,
                 window_right,
                 sink_size,
                 streaming_heads,
                 rotary_interleaved,
                 {},
                 1,
                 num_splits,
                 k_stream,
                 v_stream,
                 softcap});
}

}  // namespace diffattn::bindings
