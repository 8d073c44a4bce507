// What every op demands of its arguments, whatever the device. Messages name the argument, what it
// was and what is accepted.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../diffattn.h"

namespace diffattn::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string joined(const int64_t* sizes, int64_t n) {
  std::ostringstream s;
  s << "(";
  for (int64_t i = 0; i < n; ++i) s << (i ? ", " : "") << sizes[i];
  s << ")";
  return s.str();
}

inline std::string shape_of(const Tensor& t) { return joined(t.sizes().data(), t.dim()); }

inline void check_dtype(const char* name, const Tensor& t, ScalarType want, const char* why) {
  check(t.scalar_type() == want, name, " has dtype ", t.scalar_type(), ", expected ", want, why);
}

// Checks that the storage holds every element: it may have been freed or cut under the tensor, as FSDP does
// between uses (untyped_storage().resize_).
inline void check_storage(const char* name, const Tensor& t) {
  if (t.numel() == 0) return;
  int64_t bytes = 0, last = t.storage_offset();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  for (int64_t dim = 0; dim < t.dim(); ++dim) last += (t.size(dim) - 1) * t.stride(dim);
  const int64_t needed = (last + 1) * t.element_size();
  check(bytes >= needed, name, " has a storage of ", bytes, " bytes, its shape ", shape_of(t),
        " needs ", needed, ": the storage was freed or resized");
}

// Checks that it is on q's device, in memory that exists.
inline void check_place(const char* name, const Tensor& t, const Tensor& q) {
  check(t.device() == q.device(), name, " and q are on different devices; move them to one");
  check_storage(name, t);
}

// Keys of a sequence. The limit is far more than any memory holds; beyond it, sizes of working memory would
// wrap around.
inline void check_length(const char* name, int64_t keys) {
  constexpr int64_t kMost = int64_t(1) << 40;
  check(keys <= kMost, name, " has room for ", keys, " keys, accepted: up to 2^40");
}

// The type that everything is summed in; λ, LSE and the norm weight are given in it.
inline ScalarType compute_type(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline DType dtype_of(const Tensor& q) {
  switch (q.scalar_type()) {
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    default:
      check(false, "q has dtype ", q.scalar_type(), ", accepted: fp16, bf16, fp32, fp64");
      return DType::f32;
  }
}

// A dimension of size 1 may have any stride, because no access steps along it.
inline int64_t stride_of(const Tensor& t, int64_t dim) {
  return t.size(dim) == 1 ? 0 : t.stride(dim);
}

inline bool last_is_contiguous(const Tensor& t) {
  return t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1;
}

// Kernels read whole rows; a tensor whose rows are not contiguous is copied.
inline Tensor with_rows(const Tensor& t) {
  return last_is_contiguous(t) ? t : torch::stable::contiguous(t);
}

// How many maps q has, without the noise.
inline int64_t signals_of(const Tensor& q) { return q.size(q.dim() - 2) - 1; }

// Refuses groups where the kernels take pairs alone.
inline void check_pairs(const Tensor& q, const char* where) {
  check(signals_of(q) == 1, "q has shape ", shape_of(q), ", accepted ", where,
        ": (.., nheads, 2, headdim); groups of r signal maps are r pairs with the same noise");
}

// Head counts and dims of q (.., nheads, 2, d), or (.., groups, r + 1, d) of groups of r signal maps,
// k (.., nheads_k, 1 or 2, d), v (.., nheads_k, dv) or (.., nheads_k, 2, d); the caller sets seqlens and batch. k_name and v_name: the user's names of k and v. There may be KV heads that are
// elsewhere.
inline Shape heads_of(const Tensor& q, const Tensor& k, const Tensor& v, const char* k_name = "k",
                      const char* v_name = "v", int64_t heads_elsewhere = 0) {
  const int64_t at = q.dim() - 3, d = q.size(at + 2), groups = q.size(at), maps = q.size(at + 1);
  const int64_t nheads_here = k.size(k.dim() - 3), comps = k.size(k.dim() - 2);
  const int64_t nheads_k = nheads_here + heads_elsewhere;
  // V in halves, (.., nheads_k, 2, d), has as many dimensions as K.
  const bool halves = v.dim() == k.dim();
  const int64_t dv = v.size(v.dim() - 1) * (halves ? 2 : 1);
  check(maps >= 2 && maps <= kMostSignals + 1, "q has shape ", shape_of(q),
        ", expected (.., nheads, 2, headdim), or (.., groups, r + 1, headdim) with r = 1 to ",
        kMostSignals);
  check(comps == 1 || comps == 2, k_name, " has shape ", shape_of(k),
        ", expected (.., nheads_k, 1 or 2, headdim)");
  check(d >= 8 && d <= kMostHeaddim && d % 8 == 0, "q has headdim ", d,
        ", accepted: every multiple of 8 from 8 to ", kMostHeaddim);
  check(k.size(k.dim() - 1) == d, k_name, " has headdim ", k.size(k.dim() - 1), ", q has ", d,
        ": they must be equal");
  check(!halves || (v.size(v.dim() - 2) == 2 && dv == 2 * d), v_name, " has shape ", shape_of(v),
        ", expected for its halves (.., nheads_k, 2, headdim) with q's headdim ", d);
  check(dv == d || dv == 2 * d, v_name, " has headdim ", dv, ", accepted for q's headdim ", d, ": ",
        d, " or ", 2 * d);
  check(v.size(k.dim() - 3) == nheads_here, v_name, " has ", v.size(k.dim() - 3), " heads, ",
        k_name, " has ", nheads_here, " (pairs): they must be equal");
  check(groups > 0 && nheads_k > 0 && groups % nheads_k == 0, "q has ", groups, " heads (pairs), ",
        k_name, heads_elsewhere ? " and k_stream have " : " has ", nheads_k,
        ": nheads must be a positive multiple of nheads_k");
  Shape s{};
  s.nheads = groups * (maps - 1);
  s.nheads_k = nheads_k;
  s.headdim = d;
  s.headdim_v = dv;
  s.k_components = comps;
  return s;
}

inline void check_softcap(double softcap) {
  check(softcap == 0 || (softcap >= kLeastSoftcap && softcap <= kMostSoftcap), "softcap is ",
        softcap, ", accepted: 0 (no cap), or a number from ", kLeastSoftcap, " to ", kMostSoftcap);
}

inline Norm norm_of(const OptionalTensor& weight, const std::optional<double>& eps, double scale) {
  return {weight ? weight->data_ptr() : nullptr, eps.value_or(-1), scale};
}

inline const int32_t* int32_data(const OptionalTensor& t) {
  return t ? static_cast<const int32_t*>(t->data_ptr()) : nullptr;
}

// A window that hides nothing may be given as any large number. Positions are added to it, so it is reduced to
// the smallest number that hides nothing: the left side reaches back over all keys, the right side over all
// rows.
inline Mask mask_of(int64_t left, int64_t right, int64_t sink, int64_t streaming, const Shape& s) {
  constexpr int64_t kAllStream = -1, kMostHeads = 64;
  check(sink >= 0, "sink_size is ", sink, ", expected >= 0");
  check((sink == 0 && streaming == kAllStream) || right == 0,
        "sink_size and streaming_heads need a causal mask (window_right = 0), window_right is ",
        right);
  check(streaming == kAllStream || s.nheads_k <= kMostHeads, "streaming_heads is given for ",
        s.nheads_k, " KV heads, accepted: up to ", kMostHeads);
  const int64_t all = s.seqlen_q + s.seqlen_k;
  const Mask full{left < 0 ? left : -1, right < all ? right : all};
  const uint64_t heads = ~uint64_t(0) >> (kMostHeads - std::min(s.nheads_k, kMostHeads));
  if (left < 0 || (uint64_t(streaming) & heads) == 0) return full;
  return {left < all ? left : all, full.right, sink < all ? sink : all,
          uint64_t(streaming) | ~heads};
}

}  // namespace diffattn::bindings
