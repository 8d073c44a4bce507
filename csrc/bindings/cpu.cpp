// Forward and backward on CPU tensors, deterministic whether asked or not.
#include <torch/csrc/stable/library.h>

#include "cpu_parallel.h"
#include "cu_seqlens.h"

namespace diffattn::bindings {
namespace {

// The arguments with their values checked, before anything that costs a copy. Only cu_seqlens are copied first,
// so that what is checked is what is read, even if something writes to them meanwhile.
Attention for_kernel(const FwdArguments& given) {
  Attention a(given);
  for (OptionalTensor* t : {&a.cu_seqlens_q, &a.cu_seqlens_k})
    if (*t) *t = torch::stable::clone(**t);
  check_values(a);
  return a;
}

void copy_to_rows(Attention& a) {
  for (Tensor* t : {&a.q, &a.k, &a.v}) *t = with_rows(*t);
  if (a.norm_weight) a.norm_weight = with_rows(*a.norm_weight);
}

Outputs fwd(const FwdArguments& given, bool training) {
  Attention a = for_kernel(given);
  copy_to_rows(a);
  const bool saves = training && a.norm_eps;  // without a norm, backward needs only the LSE
  Tensor out = a.new_of(kOut), lse = a.new_of(kLse);
  Tensor o = saves ? a.new_of(kO) : a.new_absent();
  Tensor rstd = saves ? a.new_of(kRstd) : a.new_absent();
  auto p = params_of<FwdParams>(a);
  set_views(p, a.packed, {{kOut, out}, {kLse, lse}});
  p.groups.lse = map_stride(kLse, lse, a.packed);
  if (saves) set_views(p, a.packed, {{kO, o}, {kRstd, rstd}});
  if (!a.empty()) cpu::fwd(p, parallel());
  return {out, lse, o, a.new_absent(), rstd};
}

Outputs bwd(const FwdArguments& given, Saved saved) {
  Attention a = for_kernel(given);
  check_saved(a, saved);
  copy_to_rows(a);
  saved.dout = with_rows(saved.dout);
  Tensor dq = a.new_of(kDq), dlam = a.new_of(kDlam);
  Tensor dk = torch::stable::new_zeros(a.k, a.k.sizes());
  Tensor dv = torch::stable::new_zeros(a.v, a.v.sizes());
  Tensor dweight = a.norm_weight ? torch::stable::new_zeros(*a.norm_weight, a.norm_weight->sizes())
                                 : a.new_absent();
  auto p = params_of<BwdParams>(a);
  set_views(p, a.packed,
            {{kSavedLse, saved.lse},
             {kDout, saved.dout},
             {kDq, dq},
             {kDk, dk},
             {kDv, dv},
             {kDlam, dlam}});
  p.groups.lse = map_stride(kSavedLse, saved.lse, a.packed);
  p.groups.dq = map_stride(kDq, dq, a.packed);
  if (saved.dlse) {
    set_views(p, a.packed, {{kDlse, *saved.dlse}});
    p.groups.dlse = map_stride(kDlse, *saved.dlse, a.packed);
  }
  if (a.norm_eps) set_views(p, a.packed, {{kSavedO, saved.o}, {kSavedRstd, saved.rstd}});
  p.dnorm_weight = a.norm_weight ? dweight.data_ptr() : nullptr;
  if (!a.empty()) cpu::bwd(p, parallel());
  return {dq, dk, dv, dlam, dweight};
}

OutAndLse components(const FwdArguments& given) {
  Attention a = for_kernel(given);
  copy_to_rows(a);
  Tensor o = a.new_of(kComponents), lse = a.new_of(kLse);
  auto p = params_of<FwdParams>(a);
  set_views(p, a.packed, {{kComponents, o}, {kLse, lse}});
  p.groups.o = map_stride(kComponents, o, a.packed);
  p.groups.lse = map_stride(kLse, lse, a.packed);
  if (!a.empty()) cpu::fwd(p, parallel());
  return {o, lse};
}

Gradients bwd_partial(const FwdArguments& given, PartialSaved saved) {
  Attention a = for_kernel(given);
  check_saved(a, saved);
  copy_to_rows(a);
  saved.dout = with_rows(saved.dout);
  Tensor dq = a.new_of(kPartialDq), dk = a.new_of(kPartialDk), dv = a.new_dv(compute_type(a.q));
  for (Tensor* t : {&dk, &dv}) torch::stable::zero_(*t);
  auto p = params_of<BwdParams>(a);
  p.partial = true;
  set_views(p, a.packed,
            {{kSavedLse, saved.lse},
             {kDout, saved.dout},
             {kDlse, saved.dlse},
             {kPartialDq, dq},
             {kPartialDk, dk},
             {kPartialDv, dv}});
  p.groups.lse = map_stride(kSavedLse, saved.lse, a.packed);
  p.groups.dlse = map_stride(kDlse, saved.dlse, a.packed);
  p.groups.dq = map_stride(kPartialDq, dq, a.packed);
  if (!a.empty()) cpu::bwd(p, parallel());
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(DIFFATTN_OPS, CPU, m) {
  m.impl("fwd", TORCH_BOX(&fwd_from_schema<fwd>));
  m.impl("bwd", TORCH_BOX(&bwd_from_schema<bwd>));
  m.impl("components", TORCH_BOX(&components_from_schema<components>));
  m.impl("bwd_partial", TORCH_BOX(&bwd_partial_from_schema<bwd_partial>));
}

}  // namespace diffattn::bindings
