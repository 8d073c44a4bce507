// Backward: from tensors to the params of the CUDA kernels. Device as in cuda.h.
#pragma once
#include "cuda.h"

namespace diffattn::bindings {

template <class Device>
Outputs cuda_bwd(const FwdArguments& given, Saved saved) {
  const Attention a = for_kernel(given);
  check_saved(a, saved);
  check_operand(kSavedO, saved.o, a.q, a.extents());
  check_operand(kSavedOComplement, saved.o2, a.q, a.extents());
  for (Tensor* t : {&saved.dout, &saved.o, &saved.o2}) *t = with_aligned_rows(*t);
  Tensor dq = written(a.new_of(kDq), a), dk = written(a.new_of(kDk), a);
  Tensor dv = written(a.new_dv(a.q.scalar_type()), a), dlam = written(a.new_of(kDlam), a);
  Tensor dweight = a.norm_weight ? a.new_of(kDnormWeight) : a.new_absent();
  if (a.empty()) {
    for (Tensor* t : {&dk, &dv, &dweight}) torch::stable::zero_(*t);
    return {dq, dk, dv, dlam, dweight};
  }
  auto p = params_of<BwdParams>(a);
  set_views(p, a.packed,
            {{kSavedO, saved.o},
             {kSavedOComplement, saved.o2},
             {kSavedLse, saved.lse},
             {kDout, saved.dout},
             {kDq, dq},
             {kDk, dk},
             {kDv, dv},
             {kDlam, dlam}});
  if (a.norm_eps) set_views(p, a.packed, {{kSavedRstd, saved.rstd}});
  if (saved.dlse) set_views(p, a.packed, {{kDlse, *saved.dlse}});
  p.dnorm_weight = a.norm_weight ? dweight.data_ptr() : nullptr;
  p.deterministic = a.deterministic;
  Device::launch(p, a.q);
  return {dq, dk, dv, dlam, dweight};
}

template <class Device>
Gradients cuda_bwd_partial(const FwdArguments& given, PartialSaved saved) {
  const Attention a = for_kernel(given);
  check_saved(a, saved);
  saved.dout = with_aligned_rows(saved.dout);
  Tensor dq = written(a.new_of(kPartialDq), a), dk = written(a.new_of(kPartialDk), a);
  Tensor dv = written(a.new_dv(compute_type(a.q)), a), dlam = a.new_of(kDlam);
  if (a.empty()) return {dq, torch::stable::zero_(dk), torch::stable::zero_(dv)};
  auto p = params_of<BwdParams>(a);
  p.partial = true;
  p.deterministic = a.deterministic;
  set_views(p, a.packed,
            {{kSavedLse, saved.lse},
             {kDout, saved.dout},
             {kDlse, saved.dlse},
             {kPartialDq, dq},
             {kPartialDk, dk},
             {kPartialDv, dv},
             {kDlam, dlam}});
  // The kernels sum D, and dlam with it: of a row of zeros, which stands for all rows.
  const Tensor zeros = torch::stable::new_zeros(a.q, {a.shape.headdim_v});
  p.o.data = p.o_complement.data = zeros.data_ptr();
  Device::launch(p, a.q);
  return {dq, dk, dv};
}

}  // namespace diffattn::bindings
