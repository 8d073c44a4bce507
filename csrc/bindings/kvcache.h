// Decoding: from tensors to the waist's params, for any device.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "checks.h"

namespace diffattn::bindings {

// The page sizes that a backend's kernels read.
struct PageSizes {
  bool (*accepts)(int64_t page);
  const char* in_words;
};

// The arguments of decode, checked. Caches are written in place, so they are never copied.
struct KvCache {
  Tensor q, k_cache, v_cache, lam;
  OptionalTensor k, v, cos, sin, seqlens, batch_idx, leftpad, block_table, norm_weight;
  std::optional<double> norm_eps;
  int64_t window_left, window_right;
  Shape shape;

  void check_all(const PageSizes& pages) {
    check(q.dim() == 5, "q has shape ", shape_of(q),
          ", expected (batch, seqlen_q, nheads, 2, headdim)");
    check(k_cache.dim() == 5, "k_cache has shape ", shape_of(k_cache),
          ", expected (batch_cache or num_blocks, seqlen_cache or page_size, nheads_k, 1 or 2, "
          "headdim)");
    check(v_cache.dim() == 4, "v_cache has shape ", shape_of(v_cache),
          ", expected (batch_cache or num_blocks, seqlen_cache or page_size, nheads_k, headdim_v)");
    shape = heads_of(q, k_cache, v_cache, "k_cache", "v_cache");
    shape.batch = q.size(0);
    shape.seqlen_q = q.size(1);
    check_caches(pages);
    check_new();
    check_rotary();
    check_int32("cache_seqlens", seqlens, "(batch,)", shape.batch, q);
    check_int32("cache_batch_idx", batch_idx, "(batch,)", shape.batch, q);
    check_int32("cache_leftpad", leftpad, "(batch,)", shape.batch, q);
    check_shape("lam", lam, "(batch, seqlen_q, nheads)",
                {shape.batch, shape.seqlen_q, shape.nheads});
    dtype_of(q);
    check_storage("q", q);
    check_dtype("lam", lam, compute_type(q), "");
    check_place("lam", lam, q);
    check_norm(norm_weight, norm_eps, q, shape.headdim_v);
  }

  int64_t seqlen_new() const { return k ? k->size(1) : 0; }
  int64_t rotary_dim() const { return cos ? 2 * cos->size(1) : 0; }
  int64_t page_size() const { return k_cache.size(1); }

  // Whether a mask tells query rows apart. If so, rotary takes row i to position cache_seqlens + i, else all
  // rows to cache_seqlens.
  bool rows_are_ordered() const { return window_left >= 0 || window_right >= 0; }

  Cache cache(bool interleaved) const {
    Cache c;
    c.seqlens = int32_data(seqlens);
    c.batch_idx = int32_data(batch_idx);
    c.leftpad = int32_data(leftpad);
    c.seqlen_new = seqlen_new();
    c.blocks = k_cache.size(0);
    if (block_table) c.paging = {int32_data(block_table), block_table->stride(0), page_size()};
    if (cos) c.rotary = {cos->data_ptr(), sin->data_ptr(), cos->size(0), rotary_dim(), interleaved};
    return c;
  }

  Tensor new_output() const {
    return torch::stable::new_empty(q,
                                    {shape.batch, shape.seqlen_q, shape.nheads, shape.headdim_v});
  }
  Tensor new_statistics() const {
    return torch::stable::new_empty(q, {2, shape.batch, shape.nheads, shape.seqlen_q},
                                    compute_type(q));
  }

 private:
  void check_like_q(const char* name, const Tensor& t) const {
    check_dtype(name, t, q.scalar_type(), ", as q");
    check_place(name, t, q);
  }

  void check_caches(const PageSizes& pages) {
    check_like_q("k_cache", k_cache);
    check_like_q("v_cache", v_cache);
    check(last_is_contiguous(k_cache), "k_cache has stride ", k_cache.stride(4),
          " in its last dimension, expected 1: it is written in place, never copied");
    check(last_is_contiguous(v_cache), "v_cache has stride ", v_cache.stride(3),
          " in its last dimension, expected 1: it is written in place, never copied");
    const int64_t blocks = k_cache.size(0);
    check_shape("v_cache", v_cache, "as k_cache: (.., .., nheads_k, headdim_v)",
                {blocks, page_size(), shape.nheads_k, shape.headdim_v});
    if (block_table) return check_pages(pages);
    shape.seqlen_k = page_size();
    check_length("k_cache", shape.seqlen_k);
    check(batch_idx || blocks == shape.batch, "k_cache has batch ", blocks, ", q has ", shape.batch,
          ": they must be equal unless cache_batch_idx is given");
  }

  void check_pages(const PageSizes& pages) {
    const Tensor& t = *block_table;
    check_dtype("block_table", t, ScalarType::Int, "");
    check_place("block_table", t, q);
    check(t.dim() == 2 && t.size(0) == shape.batch, "block_table has shape ", shape_of(t),
          ", expected (batch, max_blocks) with batch = ", shape.batch);
    check(last_is_contiguous(t), "block_table must be contiguous in its last dimension");
    const int64_t page = page_size();
    check(pages.accepts(page), "k_cache has page_size ", page, ", accepted: ", pages.in_words);
    check_length("a page of k_cache", page);
    check_length("block_table", page * t.size(1));
    check(!batch_idx,
          "cache_batch_idx and block_table were both given; a paged cache is indexed by "
          "block_table alone");
    shape.seqlen_k = t.size(1) * page;
  }

  void check_new() const {
    check(k.has_value() == v.has_value(), "k and v must be given together");
    if (!k) return;
    check(seqlens.has_value(), "cache_seqlens is None, but k is given: it says where to append");
    check_like_q("k", *k);
    check_like_q("v", *v);
    check(k->dim() == 5, "k has shape ", shape_of(*k),
          ", expected (batch, seqlen_new, nheads_k, 1 or 2, headdim)");
    check_shape("k", *k, "(batch, seqlen_new, nheads_k, components, headdim)",
                {shape.batch, k->size(1), shape.nheads_k, shape.k_components, shape.headdim});
    check_shape("v", *v, "(batch, seqlen_new, nheads_k, headdim_v)",
                {shape.batch, k->size(1), shape.nheads_k, shape.headdim_v});
    check(k->size(1) <= shape.seqlen_k, "k has ", k->size(1), " rows, the cache holds ",
          shape.seqlen_k);
    if (k->numel() == 0) return;
    check_apart("k_cache", k_cache);
    check_apart("v_cache", v_cache);
  }

  // Each element of a cache that is written has a place of its own. Of dimensions in the order of their
  // strides, one step is then longer than all shorter dimensions together.
  static void check_apart(const char* name, const Tensor& t) {
    std::vector<std::pair<int64_t, int64_t>> steps;  // stride, number of steps
    for (int64_t dim = 0; dim < t.dim(); ++dim)
      if (t.size(dim) > 1) steps.push_back({t.stride(dim), t.size(dim) - 1});
    std::sort(steps.begin(), steps.end());
    int64_t reached = 0;
    for (const auto& [stride, count] : steps) {
      check(stride > reached, name, " has shape ", shape_of(t), " and strides ",
            joined(t.strides().data(), t.dim()),
            ": some of its elements share memory, so new keys would overwrite each other");
      reached += stride * count;
    }
  }

  void check_rotary() const {
    check(cos.has_value() == sin.has_value(), "rotary_cos and rotary_sin must be given together");
    if (!cos) return;
    check(k.has_value(), "rotary_cos is given without k: positions are those of appended keys");
    check_like_q("rotary_cos", *cos);
    check_like_q("rotary_sin", *sin);
    check(cos->dim() == 2, "rotary_cos has shape ", shape_of(*cos),
          ", expected (seqlen_ro, rotary_dim / 2)");
    check_shape("rotary_sin", *sin, "as rotary_cos", {cos->size(0), cos->size(1)});
    check(rotary_dim() % 16 == 0 && rotary_dim() <= shape.headdim, "rotary_dim is ", rotary_dim(),
          ", accepted: multiples of 16 up to headdim ", shape.headdim);
    check(cos->is_contiguous() && sin->is_contiguous(),
          "rotary_cos and rotary_sin must be contiguous");
  }
};

inline DecodeParams params_of(const KvCache& c, const Tensor& out, const Tensor& lse,
                              double softmax_scale, bool rotary_interleaved, double out_scale,
                              int64_t num_splits) {
  check(num_splits >= 0, "num_splits is ", num_splits, ", expected 0 (chosen here) or more");
  DecodeParams p{};
  p.dtype = dtype_of(c.q);
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
  p.window = window_of(c.window_left, c.window_right, c.shape);
  p.norm = norm_of(c.norm_weight, c.norm_eps, out_scale);
  p.num_splits = num_splits;
  return p;
}

}  // namespace diffattn::bindings
