// Decoding on CPU tensors. Lengths, indices and pages are checked here: their values can be read.
#include <torch/csrc/stable/library.h>

#include "cpu_parallel.h"
#include "kvcache.h"

namespace diffattn::bindings {
namespace {

void check_sequence(const KvCache& c, int64_t b) {
  const int64_t capacity = c.shape.seqlen_k, appended = c.seqlen_new();
  const int64_t cached = c.seqlens ? int32_data(c.seqlens)[b] : capacity;
  check(cached >= 0 && cached + appended <= capacity, "cache_seqlens[", b, "] is ", cached,
        ", accepted: 0 to ", capacity - appended, " (the cache holds ", capacity, ", ", appended,
        " are appended)");
  const int64_t pad = c.leftpad ? int32_data(c.leftpad)[b] : 0;
  check(pad >= 0 && pad <= cached, "cache_leftpad[", b, "] is ", pad,
        ", accepted: 0 to cache_seqlens[", b, "] = ", cached);
  if (c.batch_idx) {
    const int64_t index = int32_data(c.batch_idx)[b];
    check(index >= 0 && index < c.k_cache.size(0), "cache_batch_idx[", b, "] is ", index,
          ", accepted: 0 to ", c.k_cache.size(0) - 1);
  }
  if (c.block_table) {
    const int32_t* pages = int32_data(c.block_table) + b * c.block_table->stride(0);
    for (int64_t n = pad / c.page_size(); n * c.page_size() < cached + appended; ++n)
      check(pages[n] >= 0 && pages[n] < c.k_cache.size(0), "block_table[", b, ", ", n, "] is ",
            pages[n], ", accepted: 0 to ", c.k_cache.size(0) - 1);
  }
  if (c.cos)
    check(cached + appended <= c.cos->size(0) &&
              cached + c.shape.seqlen_q <= c.cos->size(0) + (appended ? 0 : c.shape.seqlen_q),
          "rotary_cos has ", c.cos->size(0), " positions, sequence ", b, " needs ",
          cached + (appended > c.shape.seqlen_q ? appended : c.shape.seqlen_q));
}

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
  check(num_splits >= 0, "num_splits is ", num_splits, ", expected 0 (chosen here) or more");
  for (int64_t b = 0; b < c.shape.batch; ++b) check_sequence(c, b);

  Tensor out = torch::stable::new_empty(
      q, {c.shape.batch, c.shape.seqlen_q, c.shape.nheads, c.shape.headdim_v});
  Tensor lse = torch::stable::new_empty(q, {2, c.shape.batch, c.shape.nheads, c.shape.seqlen_q},
                                        compute_type(q));
  DecodeParams p{};
  p.dtype = dtype_of(q);
  p.shape = c.shape;
  p.q = view_of(c.q, false);
  p.lam = view_of(c.lam, false);
  p.out = view_of(out, false);
  p.lse = statistics_view(lse, false, true);
  p.k_cache = view_of(c.k_cache, false);
  p.v_cache = view_of(c.v_cache, false);
  if (c.k) {
    p.k_new = view_of(*c.k, false);
    p.v_new = view_of(*c.v, false);
  }
  p.cache = c.cache(rotary_interleaved);
  p.softmax_scale = softmax_scale;
  p.window = {window_left, window_right};
  p.norm = norm_of(c.norm_weight, norm_eps, out_scale);
  p.num_splits = num_splits;
  if (c.shape.batch > 0) cpu::decode(p, parallel());
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffattn, CPU, m) { m.impl("decode", TORCH_BOX(&decode)); }

}  // namespace diffattn::bindings
