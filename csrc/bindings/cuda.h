// From tensors to the params of a CUDA kernel. What launches them is a parameter, Device::launch(params, q): that of
// cuda.cpp uses torch's stream, that of the tests a simulated device.
#pragma once
#include <algorithm>

#include "../environment.h"
#include "cu_seqlens.h"

namespace diffattn::bindings {

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

// The kernels read whole rows of V.
inline bool has_whole_rows(const Tensor& v, const Tensor& k) {
  return v.dim() != k.dim() || v.stride(v.dim() - 2) == v.size(v.dim() - 1);
}
inline Tensor with_whole_rows(const Tensor& v, const Tensor& k) {
  return has_whole_rows(v, k) ? with_aligned_rows(v) : torch::stable::contiguous(v);
}

// DIFFATTN_CHECK=1 reads what only the device knows, at the cost of a sync per call.
inline bool values_are_wanted() { return environment_flag("DIFFATTN_CHECK"); }

inline void check_kernel_dtype(const Tensor& q) {
  check(q.scalar_type() == ScalarType::Half || q.scalar_type() == ScalarType::BFloat16,
        "q has dtype ", q.scalar_type(),
        ", accepted on CUDA: fp16 and bf16; on CPU tensors also fp32 and fp64");
}

// The arguments as the kernels need them.
inline Attention for_kernel(const FwdArguments& given) {
  Attention a(given);
  check_kernel_dtype(a.q);
  check_pairs(a.q, "on CUDA");
  if (values_are_wanted()) check_values(a);
  if (a.packed) {  // max_seqlen may be too large, and the grid follows it
    a.shape.seqlen_q = std::min(a.shape.seqlen_q, a.total_q());
    a.shape.seqlen_k = std::min(a.shape.seqlen_k, a.total_k());
  }
  a.q = with_aligned_rows(a.q);
  a.k = with_aligned_rows(a.k);
  a.v = with_whole_rows(a.v, a.k);
  if (a.norm_weight) a.norm_weight = with_aligned_rows(*a.norm_weight);
  return a;
}

// Rows of no sequence are zero. They exist where cu_seqlens are wrong and were not checked.
inline Tensor written(Tensor t, const Attention& a) {
  return a.packed ? torch::stable::zero_(t) : t;
}

template <class Device>
Outputs cuda_fwd(const FwdArguments& given, bool training) {
  const Attention a = for_kernel(given);
  const auto make = [&](const Operand& o, bool wanted) {
    return wanted ? written(a.new_of(o), a) : a.new_absent();
  };
  const bool normed = training && a.norm_eps;  // without a norm the output is O itself
  Tensor out = make(kOut, true), lse = make(kLse, true);
  Tensor o = make(kO, normed), o2 = make(kOComplement, training), rstd = make(kRstd, normed);
  auto p = params_of<FwdParams>(a);
  set_views(p, a.packed, {{kOut, out}, {kLse, lse}});
  if (training) set_views(p, a.packed, {{kOComplement, o2}});
  if (normed) set_views(p, a.packed, {{kO, o}, {kRstd, rstd}});
  if (!a.empty()) Device::launch(p, a.q);
  return {out, lse, o, o2, rstd};
}

template <class Device>
OutAndLse cuda_components(const FwdArguments& given) {
  const Attention a = for_kernel(given);
  Tensor o = written(a.new_of(kComponents), a), lse = written(a.new_of(kLse), a);
  auto p = params_of<FwdParams>(a);
  set_views(p, a.packed, {{kComponents, o}, {kLse, lse}});
  if (!a.empty()) Device::launch(p, a.q);
  return {o, lse};
}

}  // namespace diffattn::bindings
