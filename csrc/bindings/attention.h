// Forward and backward: from tensors to the waist's params, for any device.
#pragma once
#include <tuple>
#include <vector>

#include "checks.h"

namespace diffattn::bindings {

// out, lse, o, o2, rstd of fwd; dq, dk, dv, dlam, dnorm_weight of bwd.
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The arguments that fwd and bwd share, checked.
struct Attention {
  Tensor q, k, v, lam;
  OptionalTensor norm_weight, cu_seqlens_q, cu_seqlens_k;
  std::optional<double> norm_eps;
  Shape shape;
  bool packed;

  Attention(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& lam_in,
            const OptionalTensor& weight, const OptionalTensor& cu_q, const OptionalTensor& cu_k,
            int64_t max_seqlen_q, int64_t max_seqlen_k, const std::optional<double>& eps)
      : q(q_in),
        k(k_in),
        v(v_in),
        lam(lam_in),
        norm_weight(weight),
        cu_seqlens_q(cu_q),
        cu_seqlens_k(cu_k),
        norm_eps(eps),
        packed(cu_q.has_value()) {
    check_ranks();
    shape = heads_of(q, k, v);
    if (packed)
      check_packed(max_seqlen_q, max_seqlen_k);
    else
      check_dense();
    check_types();
    check_norm(norm_weight, norm_eps, q, shape.headdim_v);
  }

  Varlen varlen() const {
    if (!packed) return {};
    return {int32_data(cu_seqlens_q), int32_data(cu_seqlens_k), total_q(), total_k()};
  }
  bool empty() const { return q.numel() == 0; }
  int64_t total_q() const { return q.size(0); }
  int64_t total_k() const { return k.size(0); }

  // ([comps,] batch, nheads, seqlen_q), or packed ([comps,] nheads, total_q)
  Tensor new_statistics(bool components) const {
    std::vector<int64_t> size;
    if (components) size.push_back(2);
    if (!packed) size.push_back(shape.batch);
    size.push_back(shape.nheads);
    size.push_back(packed ? total_q() : shape.seqlen_q);
    return torch::stable::new_empty(q, size, compute_type(q));
  }

  // (batch, seqlen_q, nheads, dv), or packed (total_q, nheads, dv)
  Tensor new_output() const {
    std::vector<int64_t> size{q.sizes().begin(), q.sizes().end() - 2};
    size.push_back(shape.headdim_v);
    return torch::stable::new_empty(q, size);
  }

  Tensor new_absent() const { return torch::stable::new_empty(q, {0}); }

 private:
  void check_ranks() const {
    check(cu_seqlens_q.has_value() == cu_seqlens_k.has_value(),
          "cu_seqlens_q and cu_seqlens_k must be given together");
    const int64_t more = packed ? 0 : 1;
    check(q.dim() == 4 + more, "q has shape ", shape_of(q), ", expected ",
          packed ? "(total_q" : "(batch, seqlen_q", ", nheads, 2, headdim)");
    check(k.dim() == 4 + more, "k has shape ", shape_of(k), ", expected ",
          packed ? "(total_k" : "(batch, seqlen_k", ", nheads_k, 1 or 2, headdim)");
    check(v.dim() == 3 + more, "v has shape ", shape_of(v), ", expected ",
          packed ? "(total_k" : "(batch, seqlen_k", ", nheads_k, headdim_v)");
  }

  void check_dense() {
    shape.batch = q.size(0);
    shape.seqlen_q = q.size(1);
    shape.seqlen_k = k.size(1);
    check_length("k", shape.seqlen_k);
    check(k.size(0) == shape.batch, "k has batch ", k.size(0), ", q has ", shape.batch);
    check_shape("v", v, "(batch, seqlen_k, nheads_k, headdim_v)",
                {shape.batch, shape.seqlen_k, shape.nheads_k, shape.headdim_v});
    check_shape("lam", lam, "(batch, seqlen_q, nheads)",
                {shape.batch, shape.seqlen_q, shape.nheads});
  }

  void check_packed(int64_t max_seqlen_q, int64_t max_seqlen_k) {
    check_dtype("cu_seqlens_q", *cu_seqlens_q, ScalarType::Int, "");
    check(cu_seqlens_q->dim() == 1 && cu_seqlens_q->size(0) >= 1, "cu_seqlens_q has shape ",
          shape_of(*cu_seqlens_q), ", expected (batch + 1,)");
    shape.batch = cu_seqlens_q->size(0) - 1;
    check_int32("cu_seqlens_q", cu_seqlens_q, "(batch + 1,)", shape.batch + 1, q);
    check_int32("cu_seqlens_k", cu_seqlens_k, "(batch + 1,)", shape.batch + 1, q);
    check(max_seqlen_q >= 0, "max_seqlen_q is ", max_seqlen_q, ", expected >= 0");
    check(max_seqlen_k >= 0, "max_seqlen_k is ", max_seqlen_k, ", expected >= 0");
    shape.seqlen_q = max_seqlen_q;
    shape.seqlen_k = max_seqlen_k;
    check_shape("v", v, "(total_k, nheads_k, headdim_v)",
                {k.size(0), shape.nheads_k, shape.headdim_v});
    check_shape("lam", lam, "(total_q, nheads)", {total_q(), shape.nheads});
  }

  void check_types() const {
    dtype_of(q);
    check_storage("q", q);
    check_dtype("k", k, q.scalar_type(), ", as q");
    check_dtype("v", v, q.scalar_type(), ", as q");
    check_dtype("lam", lam, compute_type(q), "");
    check_place("k", k, q);
    check_place("v", v, q);
    check_place("lam", lam, q);
  }
};

inline void check_output(const Attention& a, const char* name, const Tensor& t) {
  const Shape& s = a.shape;
  check_dtype(name, t, a.q.scalar_type(), ", as q");
  check_place(name, t, a.q);
  if (a.packed)
    check_shape(name, t, "(total_q, nheads, headdim_v)", {a.total_q(), s.nheads, s.headdim_v});
  else
    check_shape(name, t, "(batch, seqlen_q, nheads, headdim_v)",
                {s.batch, s.seqlen_q, s.nheads, s.headdim_v});
}

// What forward left, and the gradients of what it returned.
inline void check_saved(const Attention& a, const Tensor& dout, const OptionalTensor& dlse,
                        const Tensor& o, const Tensor& lse, const Tensor& rstd) {
  const Shape& s = a.shape;
  const auto check_lse = [&](const char* name, const Tensor& t) {
    check_dtype(name, t, compute_type(a.q), "");
    check_place(name, t, a.q);
    if (a.packed)
      check_shape(name, t, "(2, nheads, total_q)", {2, s.nheads, a.total_q()});
    else
      check_shape(name, t, "(2, batch, nheads, seqlen_q)", {2, s.batch, s.nheads, s.seqlen_q});
  };
  check_output(a, "dout", dout);
  check_lse("lse", lse);
  if (dlse) check_lse("dlse", *dlse);
  if (!a.norm_eps) return;
  check_output(a, "o", o);
  check(last_is_contiguous(o), "o must have contiguous rows");
  check_dtype("rstd", rstd, compute_type(a.q), "");
  check_place("rstd", rstd, a.q);
  if (a.packed)
    check_shape("rstd", rstd, "(nheads, total_q)", {s.nheads, a.total_q()});
  else
    check_shape("rstd", rstd, "(batch, nheads, seqlen_q)", {s.batch, s.nheads, s.seqlen_q});
}

template <class Params>
void fill_inputs(Params& p, const Attention& a, double softmax_scale, int64_t window_left,
                 int64_t window_right, double out_scale) {
  p.dtype = dtype_of(a.q);
  p.shape = a.shape;
  p.q = view_of(a.q, a.packed);
  p.k = view_of(a.k, a.packed);
  p.v = view_of(a.v, a.packed);
  p.lam = view_of(a.lam, a.packed);
  p.softmax_scale = softmax_scale;
  p.window = window_of(window_left, window_right, a.shape);
  p.norm = norm_of(a.norm_weight, a.norm_eps, out_scale);
  p.varlen = a.varlen();
}

}  // namespace diffattn::bindings
