// Forward and backward on CPU tensors, deterministic whether asked or not.
#include <torch/csrc/stable/library.h>

#include "cpu_parallel.h"
#include "cu_seqlens.h"

namespace diffattn::bindings {
namespace {

// The arguments with their values checked, and only then what costs a copy. cu_seqlens are copied first: what
// is checked is what is read, whoever writes to them meanwhile.
Attention for_kernel(Attention a) {
  for (OptionalTensor* t : {&a.cu_seqlens_q, &a.cu_seqlens_k})
    if (*t) *t = torch::stable::clone(**t);
  check_values(a);
  return a;
}

void copy_to_rows(Attention& a) {
  for (Tensor* t : {&a.q, &a.k, &a.v}) *t = with_rows(*t);
  if (a.norm_weight) a.norm_weight = with_rows(*a.norm_weight);
}

Outputs fwd(Tensor q, Tensor k, Tensor v, Tensor lam, OptionalTensor norm_weight,
            OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
            int64_t max_seqlen_k, double softmax_scale, int64_t window_left, int64_t window_right,
            std::optional<double> norm_eps, double out_scale, bool /*deterministic*/,
            bool training) {
  Attention a = for_kernel({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                            max_seqlen_k, norm_eps});
  copy_to_rows(a);
  const bool saves = training && norm_eps;  // without a norm this backward needs only the LSE
  Tensor out = a.new_output(), lse = a.new_statistics(true);
  Tensor o = saves ? a.new_output() : a.new_absent();
  Tensor rstd = saves ? a.new_statistics(false) : a.new_absent();
  FwdParams p{};
  fill_inputs(p, a, softmax_scale, window_left, window_right, out_scale);
  p.out = view_of(out, a.packed);
  p.lse = statistics_view(lse, a.packed, true);
  if (saves) {
    p.o = view_of(o, a.packed);
    p.rstd = statistics_view(rstd, a.packed, false);
  }
  if (!a.empty()) cpu::fwd(p, parallel());
  return {out, lse, o, a.new_absent(), rstd};
}

Outputs bwd(Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam,
            OptionalTensor norm_weight, Tensor o, Tensor /*o2*/, Tensor lse, Tensor rstd,
            OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
            int64_t max_seqlen_k, double softmax_scale, int64_t window_left, int64_t window_right,
            std::optional<double> norm_eps, double out_scale, bool /*deterministic*/) {
  Attention a = for_kernel({q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
                            max_seqlen_k, norm_eps});
  check_saved(a, dout, dlse, o, lse, rstd);
  copy_to_rows(a);
  dout = with_rows(dout);
  Tensor dq = torch::stable::new_empty(q, a.q.sizes());
  Tensor dk = torch::stable::new_zeros(k, a.k.sizes());
  Tensor dv = torch::stable::new_zeros(v, a.v.sizes());
  Tensor dlam = torch::stable::new_empty(lam, lam.sizes());
  Tensor dweight =
      norm_weight ? torch::stable::new_zeros(*norm_weight, norm_weight->sizes()) : a.new_absent();
  BwdParams p{};
  fill_inputs(p, a, softmax_scale, window_left, window_right, out_scale);
  p.lse = statistics_view(lse, a.packed, true);
  p.dout = view_of(dout, a.packed);
  if (dlse) p.dlse = statistics_view(*dlse, a.packed, true);
  if (norm_eps) {
    p.o = view_of(o, a.packed);
    p.rstd = statistics_view(rstd, a.packed, false);
  }
  p.dq = view_of(dq, a.packed);
  p.dk = view_of(dk, a.packed);
  p.dv = view_of(dv, a.packed);
  p.dlam = view_of(dlam, a.packed);
  p.dnorm_weight = norm_weight ? dweight.data_ptr() : nullptr;
  if (!a.empty()) cpu::bwd(p, parallel());
  return {dq, dk, dv, dlam, dweight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffattn, CPU, m) {
  m.impl("fwd", TORCH_BOX(&fwd));
  m.impl("bwd", TORCH_BOX(&bwd));
}

}  // namespace diffattn::bindings
