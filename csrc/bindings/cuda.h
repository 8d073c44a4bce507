// From tensors to the params of a CUDA kernel. The launch is left open: cuda.cpp gives it torch's
// stream, the simulator of the tests its own device.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cu_seqlens.h"

namespace diffattn::bindings {

template <class Params>
using Launch = void (*)(const Params& p, const Tensor& q);

// Kernels copy rows in pieces of 16 bytes.
inline bool is_aligned(const Tensor& t) {
  constexpr int64_t kBytes = 16;
  const int64_t elements = kBytes / t.element_size();
  bool aligned = last_is_contiguous(t) && reinterpret_cast<uintptr_t>(t.data_ptr()) % kBytes == 0;
  for (int64_t dim = 0; dim + 1 < t.dim(); ++dim) aligned &= stride_of(t, dim) % elements == 0;
  return aligned;
}

inline Tensor with_aligned_rows(const Tensor& t) {
  if (is_aligned(t)) return t;
  return t.is_contiguous() ? torch::stable::clone(t) : torch::stable::contiguous(t);
}

// DIFFATTN_CHECK=1 reads what only the device knows, at the price of a sync for each call.
inline bool values_are_wanted() {
  const char* asked = std::getenv("DIFFATTN_CHECK");
  return asked && !std::strcmp(asked, "1");
}

inline void check_kernel_dtype(const Tensor& q) {
  check(q.scalar_type() == ScalarType::Half || q.scalar_type() == ScalarType::BFloat16,
        "q has dtype ", q.scalar_type(),
        ", accepted on CUDA: fp16 and bf16; on CPU tensors also fp32 and fp64");
}

// The arguments as the kernels need them.
inline Attention for_kernel(Attention a) {
  check_kernel_dtype(a.q);
  if (values_are_wanted()) check_values(a);
  if (a.packed) {  // max_seqlen may be generous, the grid follows it
    a.shape.seqlen_q = std::min(a.shape.seqlen_q, a.total_q());
    a.shape.seqlen_k = std::min(a.shape.seqlen_k, a.total_k());
  }
  a.q = with_aligned_rows(a.q);
  a.k = with_aligned_rows(a.k);
  a.v = with_aligned_rows(a.v);
  if (a.norm_weight) a.norm_weight = with_aligned_rows(*a.norm_weight);
  return a;
}

// Rows that no sequence owns, where cu_seqlens are wrong and nobody looked, are zero.
inline Tensor written(Tensor t, const Attention& a) {
  return a.packed ? torch::stable::zero_(t) : t;
}

template <Launch<FwdParams> launch>
Outputs cuda_fwd(Tensor q, Tensor k, Tensor v, Tensor lam, OptionalTensor norm_weight,
                 OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
                 int64_t max_seqlen_k, double softmax_scale, int64_t window_left,
                 int64_t window_right, std::optional<double> norm_eps, double out_scale,
                 bool /*deterministic*/, bool training) {
  const Attention a = for_kernel({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k,
                                  max_seqlen_q, max_seqlen_k, norm_eps});
  const bool normed = training && norm_eps;  // without a norm the output is O itself
  Tensor out = written(a.new_output(), a), lse = written(a.new_statistics(true), a);
  Tensor o = normed ? written(a.new_output(), a) : a.new_absent();
  Tensor o2 = training ? written(a.new_output(), a) : a.new_absent();
  Tensor rstd = normed ? written(a.new_statistics(false), a) : a.new_absent();
  FwdParams p{};
  fill_inputs(p, a, softmax_scale, window_left, window_right, out_scale);
  p.out = view_of(out, a.packed);
  p.lse = statistics_view(lse, a.packed, true);
  if (training) p.o2 = view_of(o2, a.packed);
  if (normed) {
    p.o = view_of(o, a.packed);
    p.rstd = statistics_view(rstd, a.packed, false);
  }
  if (!a.empty()) launch(p, a.q);
  return {out, lse, o, o2, rstd};
}

template <Launch<BwdParams> launch>
Outputs cuda_bwd(Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam,
                 OptionalTensor norm_weight, Tensor o, Tensor o2, Tensor lse, Tensor rstd,
                 OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
                 int64_t max_seqlen_k, double softmax_scale, int64_t window_left,
                 int64_t window_right, std::optional<double> norm_eps, double out_scale,
                 bool deterministic) {
  check_kernel_dtype(q);
  const Attention a = for_kernel({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k,
                                  max_seqlen_q, max_seqlen_k, norm_eps});
  check_saved(a, dout, dlse, o, lse, rstd);
  check_output(a, "o", o);
  check_output(a, "o2", o2);
  dout = with_aligned_rows(dout);
  o = with_aligned_rows(o);
  o2 = with_aligned_rows(o2);
  Tensor dq = written(torch::stable::new_empty(q, a.q.sizes()), a);
  Tensor dk = written(torch::stable::new_empty(k, a.k.sizes()), a);
  Tensor dv = written(torch::stable::new_empty(v, a.v.sizes()), a);
  Tensor dlam = written(torch::stable::new_empty(lam, lam.sizes()), a);
  Tensor dweight =
      norm_weight ? torch::stable::new_empty(*norm_weight, norm_weight->sizes()) : a.new_absent();
  if (a.empty()) {
    torch::stable::zero_(dk);
    torch::stable::zero_(dv);
    torch::stable::zero_(dweight);
    return {dq, dk, dv, dlam, dweight};
  }
  BwdParams p{};
  fill_inputs(p, a, softmax_scale, window_left, window_right, out_scale);
  p.o = view_of(o, a.packed);
  p.o2 = view_of(o2, a.packed);
  p.lse = statistics_view(lse, a.packed, true);
  if (norm_eps) p.rstd = statistics_view(rstd, a.packed, false);
  p.dout = view_of(dout, a.packed);
  if (dlse) p.dlse = statistics_view(*dlse, a.packed, true);
  p.dq = view_of(dq, a.packed);
  p.dk = view_of(dk, a.packed);
  p.dv = view_of(dv, a.packed);
  p.dlam = view_of(dlam, a.packed);
  p.dnorm_weight = norm_weight ? dweight.data_ptr() : nullptr;
  p.deterministic = deterministic;
  const Tensor workspace =
      torch::stable::new_empty(q, {cuda::bwd_workspace_bytes(p)}, ScalarType::Byte);
  p.workspace = workspace.data_ptr();
  launch(p, a.q);
  return {dq, dk, dv, dlam, dweight};
}

}  // namespace diffattn::bindings
