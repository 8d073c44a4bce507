// Decoding on CPU tensors. Lengths, indices and pages are checked too: their values can be read.
#include <torch/csrc/stable/library.h>

#include "cache_values.h"
#include "cpu_parallel.h"

namespace diffattn::bindings {
namespace {

constexpr PageSizes kPageSizes{[](int64_t page) { return page >= 1; }, "every size from 1 on"};

std::tuple<Tensor, Tensor> decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lam,
                                  OptionalTensor k, OptionalTensor v, OptionalTensor rotary_cos,
                                  OptionalTensor rotary_sin, OptionalTensor cache_seqlens,
                                  OptionalTensor cache_batch_idx, OptionalTensor cache_leftpad,
                                  OptionalTensor block_table, OptionalTensor norm_weight,
                                  double softmax_scale, int64_t window_left, int64_t window_right,
                                  bool rotary_interleaved, std::optional<double> norm_eps,
                                  double out_scale, int64_t num_splits) {
  KvCache c{q,
            k_cache,
            v_cache,
            lam,
            k,
            v,
            rotary_cos,
            rotary_sin,
            cache_seqlens,
            cache_batch_idx,
            cache_leftpad,
            block_table,
            norm_weight,
            norm_eps,
            window_left,
            window_right,
            {}};
  c.check_all(kPageSizes);
  const CacheValues values(c);
  c.q = with_rows(c.q);
  for (OptionalTensor* t : {&c.k, &c.v, &c.norm_weight})
    if (*t) *t = with_rows(**t);
  Tensor out = c.new_output(), lse = c.new_statistics();
  DecodeParams p = params_of(c, out, lse, softmax_scale, rotary_interleaved, out_scale, num_splits);
  values.use_in(p.cache);
  if (c.shape.batch > 0) cpu::decode(p, parallel());
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffattn, CPU, m) { m.impl("decode", TORCH_BOX(&decode)); }

}  // namespace diffattn::bindings
