// Backward: from tensors to the params of the CUDA kernels. The launch is left open, as in cuda.h.
#pragma once
#include "cuda.h"

namespace diffattn::bindings {

using BwdLaunch = void (*)(const BwdParams& p, const Tensor& q);

inline Tensor new_workspace(const BwdParams& p, const Tensor& q) {
  return torch::stable::new_empty(q, {cuda::bwd_workspace(p)}, ScalarType::Byte);
}

template <BwdLaunch launch>
Outputs cuda_bwd(Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam,
                 OptionalTensor norm_weight, Tensor o, Tensor o2, Tensor lse, Tensor rstd,
                 OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
                 int64_t max_seqlen_k, double softmax_scale, int64_t window_left,
                 int64_t window_right, std::optional<double> norm_eps, double out_scale,
                 bool deterministic) {
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
    for (Tensor* t : {&dk, &dv, &dweight}) torch::stable::zero_(*t);
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
  launch(p, a.q);
  return {dq, dk, dv, dlam, dweight};
}

}  // namespace diffattn::bindings
