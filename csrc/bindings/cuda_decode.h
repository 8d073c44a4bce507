// Decoding: from tensors to the params of the CUDA kernels. Device as in cuda.h.
#pragma once
#include "cache_values.h"
#include "cuda.h"

namespace diffattn::bindings {

// The kernels read whole blocks of 16 keys, none of which may cross a page.
constexpr PageSizes kPageSizes{[](int64_t page) { return page > 0 && page % 16 == 0; },
                               "multiples of 16"};

inline void check_aligned(const char* name, const Tensor& t) {
  check(is_aligned(t), name, " must begin at a multiple of 16 bytes, and so must its rows: it is ",
        "written in place, never copied");
}

inline void check_halves(const char* name, const Tensor& v, const Tensor& k) {
  check(has_whole_rows(v, k), name, " has halves that lie ", v.stride(v.dim() - 2),
        " numbers apart, accepted on CUDA: ", v.size(v.dim() - 1), ", one behind the other");
}

inline KvCache for_kernel(const DecodeArguments& given) {
  const auto aligned = [](const OptionalTensor& t) {
    return t ? OptionalTensor(with_aligned_rows(*t)) : t;
  };
  check_kernel_dtype(given.q);
  KvCache c(given, kPageSizes);
  check_pairs(c.q, "on CUDA");
  if (values_are_wanted()) CacheValues checked(c);
  check_halves("v_cache", c.v_cache, c.k_cache);
  check_aligned("k_cache", c.k_cache);
  check_aligned("v_cache", c.v_cache);
  if (c.k_stream) {
    check_halves("v_stream", *c.v_stream, *c.k_stream);
    check_aligned("k_stream", *c.k_stream);
    check_aligned("v_stream", *c.v_stream);
  }
  c.q = with_aligned_rows(c.q);
  c.k = aligned(c.k);
  if (c.v) c.v = with_whole_rows(*c.v, *c.k);
  c.norm_weight = aligned(c.norm_weight);
  return c;
}

// To the output, or to each map's own.
template <class Device>
OutAndLse decode_to(const Operand& output, const DecodeArguments& given) {
  const KvCache c = for_kernel(given);
  Tensor out = c.new_of(output), lse = c.new_of(kLse);
  DecodeParams p = params_of(c);
  set_views(p, false, {{output, out}, {kLse, lse}});
  if (c.shape.batch > 0) Device::launch(p, c.q);
  return {out, lse};
}

template <class Device>
OutAndLse cuda_decode(const DecodeArguments& given) {
  return decode_to<Device>(kOut, given);
}
template <class Device>
OutAndLse cuda_decode_components(const DecodeArguments& given) {
  return decode_to<Device>(kComponents, given);
}

}  // namespace diffattn::bindings
