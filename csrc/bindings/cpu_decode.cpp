// Decoding on CPU tensors. Lengths, indices and pages are checked too: their values can be read.
#include <torch/csrc/stable/library.h>

#include "cache_values.h"
#include "cpu_parallel.h"

namespace diffattn::bindings {
namespace {

std::tuple<Tensor, Tensor> decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lam,
                                  OptionalTensor k, OptionalTensor v, OptionalTensor rotary_cos,
                                  OptionalTensor rotary_sin, OptionalTensor cache_seqlens,
                                  OptionalTensor cache_batch_idx, OptionalTensor cache_leftpad,
                                  OptionalTensor block_table, OptionalTensor norm_weight,
                                  double softmax_scale, int64_t window_left, int64_t window_right,
                                  bool rotary_interleaved, std::optional<double> norm_eps,
                                  double out_scale, int64_t num_splits) {
  const auto rows = [](const OptionalTensor& t) { return t ? OptionalTensor(with_rows(*t)) : t; };
  KvCache c{with_rows(q),  k_cache,     v_cache,           lam,           rows(k),
            rows(v),       rotary_cos,  rotary_sin,        cache_seqlens, cache_batch_idx,
            cache_leftpad, block_table, rows(norm_weight), norm_eps,      {}};
  c.check_all();
  check_values(c);
  Tensor out = c.new_output(), lse = c.new_statistics();
  const DecodeParams p = params_of(c, out, lse, softmax_scale, window_left, window_right,
                                   rotary_interleaved, out_scale, num_splits);
  if (c.shape.batch > 0) cpu::decode(p, parallel());
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffattn, CPU, m) { m.impl("decode", TORCH_BOX(&decode)); }

}  // namespace diffattn::bindings
