// Forward and backward on CPU tensors, deterministic whether asked or not. Values are checked here
// too, for they can be read.
#include <torch/csrc/stable/library.h>

#include "attention.h"
#include "cpu_parallel.h"

namespace diffattn::bindings {
namespace {

// Returns the longest length.
int64_t check_cu_seqlens(const char* name, const Tensor& t, int64_t total, const char* total_name,
                         int64_t max_seqlen, const char* max_name) {
  const auto* cu = static_cast<const int32_t*>(t.data_ptr());
  const int64_t batch = t.size(0) - 1;
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

// max_seqlen_q and max_seqlen_k are only bounds; work and memory go by the lengths there are.
void check_values(Attention& a) {
  if (!a.packed) return;
  a.shape.seqlen_q = check_cu_seqlens("cu_seqlens_q", *a.cu_seqlens_q, a.q.size(0), "total_q",
                                      a.shape.seqlen_q, "max_seqlen_q");
  a.shape.seqlen_k = check_cu_seqlens("cu_seqlens_k", *a.cu_seqlens_k, a.k.size(0), "total_k",
                                      a.shape.seqlen_k, "max_seqlen_k");
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fwd(
    Tensor q, Tensor k, Tensor v, Tensor lam, OptionalTensor norm_weight,
    OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, double softmax_scale, int64_t window_left, int64_t window_right,
    std::optional<double> norm_eps, double out_scale, bool /*deterministic*/, bool training) {
  Attention a(q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
              norm_eps);
  check_values(a);
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bwd(
    Tensor dout, OptionalTensor dlse, Tensor q, Tensor k, Tensor v, Tensor lam,
    OptionalTensor norm_weight, Tensor o, Tensor /*o2*/, Tensor lse, Tensor rstd,
    OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k, int64_t max_seqlen_q,
    int64_t max_seqlen_k, double softmax_scale, int64_t window_left, int64_t window_right,
    std::optional<double> norm_eps, double out_scale, bool /*deterministic*/) {
  Attention a(q, k, v, lam, norm_weight, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
              norm_eps);
  check_values(a);
  check_saved(a, dout, dlse, o, lse, rstd);
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
