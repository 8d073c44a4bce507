// Forward and backward: from tensors to the waist's params, for any device.
#pragma once
#include "arguments.h"
#include "views.h"

namespace diffattn::bindings {

// The arguments that fwd and bwd share, checked.
struct Attention : FwdArguments {
  Shape shape;
  bool packed;

  explicit Attention(const FwdArguments& given)
      : FwdArguments(given), packed(given.cu_seqlens_q.has_value()) {
    check(cu_seqlens_q.has_value() == cu_seqlens_k.has_value(),
          "cu_seqlens_q and cu_seqlens_k must be given together");
    check_rank(kQ, q, packed);
    check_rank(kK, k, packed);
    check_rank(kV, v, packed);
    shape = heads_of(q, k, v);
    if (packed)
      check_packed();
    else
      check_dense();
    check_shape(kV, v, extents());
    if (lam) check_shape(kLam, *lam, extents());
    dtype_of(q);
    check_storage("q", q);
    check_type(kK, k, q);
    check_type(kV, v, q);
    if (lam) check_type(kLam, *lam, q);
    check_norm(norm_weight, norm_eps, q, extents());
    check_softcap(softcap);
  }

  Varlen varlen() const {
    if (!packed) return {};
    return {int32_data(cu_seqlens_q), int32_data(cu_seqlens_k), total_q(), total_k()};
  }
  int64_t signals() const { return signals_of(q); }
  Extents extents() const { return extents_of(shape, varlen(), {signals()}); }
  bool empty() const { return q.numel() == 0; }
  int64_t total_q() const { return q.size(0); }
  int64_t total_k() const { return k.size(0); }

  Tensor new_of(const Operand& o) const { return new_operand(o, q, extents()); }
  // dV has the form in which V was given.
  Tensor new_dv(ScalarType type) const { return torch::stable::new_empty(q, v.sizes(), type); }
  Tensor new_absent() const { return torch::stable::new_empty(q, {0}); }

 private:
  void check_dense() {
    shape.batch = q.size(0);
    shape.seqlen_q = q.size(1);
    shape.seqlen_k = k.size(1);
    check_length("k", shape.seqlen_k);
    check(k.size(0) == shape.batch, "k has batch ", k.size(0), ", q has ", shape.batch);
  }

  void check_packed() {
    check_dtype("cu_seqlens_q", *cu_seqlens_q, ScalarType::Int, "");
    check(cu_seqlens_q->dim() == 1 && cu_seqlens_q->size(0) >= 1, "cu_seqlens_q has shape ",
          shape_of(*cu_seqlens_q), ", expected (batch + 1,)");
    shape.batch = cu_seqlens_q->size(0) - 1;
    check_indices(kCuSeqlensQ, cu_seqlens_q, q, extents());
    check_indices(kCuSeqlensK, cu_seqlens_k, q, extents());
    check(max_seqlen_q >= 0, "max_seqlen_q is ", max_seqlen_q, ", expected >= 0");
    check(max_seqlen_k >= 0, "max_seqlen_k is ", max_seqlen_k, ", expected >= 0");
    shape.seqlen_q = max_seqlen_q;
    shape.seqlen_k = max_seqlen_k;
  }
};

// What forward left, and the gradients of what it returned.
inline void check_saved(const Attention& a, const Saved& saved) {
  const Extents e = a.extents();
  check_operand(kDout, saved.dout, a.q, e);
  check_operand(kSavedLse, saved.lse, a.q, e);
  if (saved.dlse) check_operand(kDlse, *saved.dlse, a.q, e);
  if (!a.norm_eps) return;
  check_operand(kSavedO, saved.o, a.q, e);
  check(last_is_contiguous(saved.o), "o must have contiguous rows");
  check_operand(kSavedRstd, saved.rstd, a.q, e);
}

inline void check_saved(const Attention& a, const PartialSaved& saved) {
  const Extents e = a.extents();
  check_operand(kDout, saved.dout, a.q, e);
  check_operand(kSavedLse, saved.lse, a.q, e);
  check_operand(kDlse, saved.dlse, a.q, e);
}

// The params that forward and backward share.
template <class Params>
Params params_of(const Attention& a) {
  Params p{};
  p.dtype = dtype_of(a.q);
  p.shape = a.shape;
  set_views(p, a.packed, {{kQ, a.q}, {kK, a.k}, {kV, a.v}});
  if (a.lam) set_views(p, a.packed, {{kLam, *a.lam}});
  p.softmax_scale = a.softmax_scale;
  p.softcap = a.softcap;
  p.mask = mask_of(a.window_left, a.window_right, a.sink_size, a.streaming_heads, a.shape);
  p.norm = norm_of(a.norm_weight, a.norm_eps, a.out_scale);
  p.varlen = a.varlen();
  p.groups.signals = a.signals();
  p.groups.q = map_stride(kQ, a.q, a.packed);
  return p;
}

}  // namespace diffattn::bindings
