// Checks tensors, and hands them to the waist as views, by the list of operands.
#pragma once
#include <initializer_list>
#include <vector>

#include "../operands.h"
#include "checks.h"

namespace diffattn::bindings {

// Calls f(index of the dimension, what it is). Packed tensors have no batch dimension.
template <class F>
void for_each_dim(const Operand& o, bool packed, const F& f) {
  int64_t at = 0;
  for (int i = 0; i < o.rank; ++i)
    if (!(packed && o.dims[i] == Dim::batch)) f(at++, o.dims[i]);
}

inline int64_t rank_of(const Operand& o, bool packed) {
  int64_t rank = 0;
  for_each_dim(o, packed, [&](int64_t, Dim) { ++rank; });
  return rank;
}

inline std::vector<int64_t> sizes_of(const Operand& o, const Extents& e) {
  std::vector<int64_t> sizes;
  for_each_dim(o, e.packed, [&](int64_t, Dim dim) { sizes.push_back(e[dim]); });
  return sizes;
}

// "(batch, seqlen_q, nheads, 2, headdim)"
inline std::string in_words(const Operand& o, bool packed) {
  std::string words;
  for_each_dim(o, packed, [&](int64_t at, Dim dim) {
    words += std::string(at ? ", " : "(") + name_of(dim, packed);
  });
  return words + (o.rank == 1 ? ",)" : ")");
}

// None in a tensor's place reaches an op as an undefined tensor, which has neither shape nor dtype.
inline void check_given(const Operand& o, const Tensor& t) {
  check(t.defined(), o.name, " is None, expected a tensor");
}

// The operand in the form that a tensor has it, if this is a form of it.
inline Operand as_given(const Operand& o, const Tensor& t, bool packed) {
  return is_in_halves(o) && t.dim() != rank_of(o, packed) ? with_whole_rows(o) : o;
}

inline void check_rank(const Operand& listed, const Tensor& t, bool packed = false) {
  check_given(listed, t);
  const Operand o = as_given(listed, t, packed);
  check(t.dim() == rank_of(o, packed), o.name, " has shape ", shape_of(t), ", expected ",
        in_words(o, packed));
}

inline void check_shape(const Operand& listed, const Tensor& t, const Extents& e) {
  check_given(listed, t);
  const bool one_half = is_in_halves(listed) && e[Dim::halves] == 1;  // V is as wide as Q
  const Operand o = one_half ? with_whole_rows(listed) : as_given(listed, t, e.packed);
  bool same = t.dim() == rank_of(o, e.packed);
  for_each_dim(o, e.packed, [&](int64_t at, Dim dim) { same = same && t.size(at) == e[dim]; });
  if (same) return;
  const std::vector<int64_t> want = sizes_of(o, e);
  check(false, o.name, " has shape ", shape_of(t), ", expected ", in_words(o, e.packed), " = ",
        joined(want.data(), want.size()));
}

// Checks that it has the operand's dtype, and is on q's device in memory that exists.
inline void check_type(const Operand& o, const Tensor& t, const Tensor& q) {
  check_given(o, t);
  switch (o.holds) {
    case Holds::elements:
      check_dtype(o.name, t, q.scalar_type(), ", as q");
      break;
    case Holds::sums:
      check_dtype(o.name, t, compute_type(q), "");
      break;
    case Holds::indices:
      check_dtype(o.name, t, ScalarType::Int, "");
  }
  check_place(o.name, t, q);
}

inline void check_operand(const Operand& o, const Tensor& t, const Tensor& q, const Extents& e) {
  check_type(o, t, q);
  check_shape(o, t, e);
}

// Checks a vector of indices, if it is given.
inline void check_indices(const Operand& o, const OptionalTensor& t, const Tensor& q,
                          const Extents& e) {
  if (!t) return;
  check_operand(o, *t, q, e);
  check(last_is_contiguous(*t), o.name, " must be contiguous");
}

inline void check_norm(const OptionalTensor& weight, const std::optional<double>& eps,
                       const Tensor& q, const Extents& e) {
  check(!eps || *eps >= 0, "norm_eps is ", eps.value_or(0), ", accepted: None or a number >= 0");
  if (!weight) return;
  check(eps.has_value(), "norm_weight was given without norm_eps; give both, or norm_eps alone");
  check_shape(kNormWeight, *weight, e);
  check_type(kNormWeight, *weight, q);
}

// Uninitialised, on q's device.
inline Tensor new_operand(const Operand& o, const Tensor& q, const Extents& e) {
  const ScalarType type = o.holds == Holds::sums ? compute_type(q) : q.scalar_type();
  return torch::stable::new_empty(q, sizes_of(o, e), type);
}

inline View view_of(const Operand& o, const Tensor& t, bool packed) {
  View v;
  v.data = t.data_ptr();
  v.half = t.size(t.dim() - 1) / 2;
  for_each_dim(as_given(o, t, packed), packed, [&](int64_t at, Dim dim) {
    if (const auto along = stride_along(dim)) v.*along = stride_of(t, at);
  });
  return v;
}

// The stride from map to map.
inline int64_t map_stride(const Operand& o, const Tensor& t, bool packed) {
  int64_t stride = 0;
  for_each_dim(o, packed, [&](int64_t at, Dim dim) {
    if (is_of_maps(dim)) stride = stride_of(t, at);
  });
  return stride;
}

// The noise's view of a tensor, given the first signal's. It is the last map, and the same where the tensor has
// one map for both.
inline View noise_of(const Operand& o, const Tensor& t, bool packed, View v) {
  for_each_dim(o, packed, [&](int64_t at, Dim dim) {
    if (is_of_maps(dim))
      v.data = static_cast<char*>(v.data) +
               stride_of(t, at) * (t.size(at) - 1) * int64_t(t.element_size());
  });
  return v;
}

struct Given {
  const Operand& operand;
  const Tensor& tensor;
};

// Sets the views of the operands that are given; the others stay as they are.
template <class Params>
void set_views(Params& p, bool packed, std::initializer_list<Given> all) {
  for_each_view(p, [&](const Operand& o, View& signal, auto&... noise) {
    for (const Given& given : all) {
      if (&given.operand != &o) continue;
      signal = view_of(o, given.tensor, packed);
      ((noise = noise_of(o, given.tensor, packed, signal)), ...);
    }
  });
}

}  // namespace diffattn::bindings
