// Decoding: from tensors to the waist's params, for any device.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "arguments.h"
#include "ring.h"
#include "views.h"

namespace diffattn::bindings {

// The page sizes that a backend's kernels read.
struct PageSizes {
  bool (*accepts)(int64_t page);
  const char* in_words;
};

// The arguments of decode, checked. Caches are written in place, so they are never copied.
struct KvCache : DecodeArguments {
  Shape shape;

  KvCache(const DecodeArguments& given, const PageSizes& pages) : DecodeArguments(given) {
    check_rank(kQ, q);
    check_rank(kKCache, k_cache);
    check_rank(kVCache, v_cache);
    check(k.has_value() == v.has_value(), "k and v must be given together");
    if (k) check_rank(kKNew, *k);
    check_together(*this);
    shape = heads_of(q, k_cache, v_cache, "k_cache", "v_cache", k_stream ? k_stream->size(2) : 0);
    shape.batch = q.size(0);
    shape.seqlen_q = q.size(1);
    check_caches(pages);
    if (k_stream) check_ring(*this, shape);
    check_new();
    check_rotary();
    const Extents e = extents();
    check_indices(kCacheSeqlens, seqlens, q, e);
    check_indices(kCacheBatchIdx, batch_idx, q, e);
    check_indices(kCacheLeftpad, leftpad, q, e);
    if (lam) check_shape(kLam, *lam, e);
    dtype_of(q);
    check_storage("q", q);
    if (lam) check_type(kLam, *lam, q);
    check_norm(norm_weight, norm_eps, q, e);
    check_softcap(softcap);
    check(num_splits >= 0, "num_splits is ", num_splits, ", expected 0 (chosen here) or more");
  }

  int64_t seqlen_new() const { return k ? k->size(1) : 0; }
  int64_t rotary_dim() const { return cos ? 2 * cos->size(1) : 0; }
  int64_t page_size() const { return k_cache.size(1); }

  // Whether a mask tells query rows apart. If so, rotary puts row i at position cache_seqlens + i, else all rows
  // at cache_seqlens.
  bool rows_are_ordered() const { return window_left >= 0 || window_right >= 0; }

  Mask mask() const {
    return mask_of(window_left, window_right, sink_size, streaming_heads, shape);
  }

  Cache cache() const {
    Cache c;
    c.seqlens = int32_data(seqlens);
    c.batch_idx = int32_data(batch_idx);
    c.leftpad = int32_data(leftpad);
    c.seqlen_new = seqlen_new();
    c.blocks = k_cache.size(0);
    if (block_table) c.paging = {int32_data(block_table), block_table->stride(0), page_size()};
    if (k_stream) c.ring = ring_of(*this);
    if (cos)
      c.rotary = {cos->data_ptr(), sin->data_ptr(), cos->size(0), rotary_dim(), rotary_interleaved};
    return c;
  }

  // Of q and the caches, which have to be checked before; the other arguments need not be.
  Extents extents() const {
    Extents e = extents_of(shape, k_cache.size(0), page_size(), {signals_of(q)});
    e[Dim::cached_heads] = k_cache.size(2);
    return e;
  }
  Tensor new_of(const Operand& o) const { return new_operand(o, q, extents()); }

 private:
  void check_caches(const PageSizes& pages) {
    check_type(kKCache, k_cache, q);
    check_type(kVCache, v_cache, q);
    check(last_is_contiguous(k_cache), "k_cache has stride ", k_cache.stride(4),
          " in its last dimension, expected 1: it is written in place, never copied");
    check(last_is_contiguous(v_cache), "v_cache has stride ", v_cache.stride(v_cache.dim() - 1),
          " in its last dimension, expected 1: it is written in place, never copied");
    if (block_table) {
      check_pages(pages);
      return check_shape(kVCache, v_cache, extents());
    }
    shape.seqlen_k = k_cache.size(2) ? page_size() : kMostLength;
    check_shape(kVCache, v_cache, extents());
    check_length("k_cache", shape.seqlen_k);
    const int64_t blocks = k_cache.size(0);
    check(batch_idx || blocks == shape.batch, "k_cache has batch ", blocks, ", q has ", shape.batch,
          ": they must be equal unless cache_batch_idx is given");
  }

  void check_pages(const PageSizes& pages) {
    const Tensor& t = *block_table;
    check_type(kBlockTable, t, q);
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
    if (!k) return;
    check(seqlens.has_value(), "cache_seqlens is None, but k is given: it says where to append");
    check_type(kKNew, *k, q);
    check_type(kVNew, *v, q);
    Extents e = extents();
    e[Dim::seqlen_new] = seqlen_new();
    check_shape(kKNew, *k, e);
    check_shape(kVNew, *v, e);
    check(k->size(1) <= shape.seqlen_k, "k has ", k->size(1), " rows, the cache holds ",
          shape.seqlen_k);
    if (k->numel() == 0) return;
    check_apart("k_cache", k_cache);
    check_apart("v_cache", v_cache);
    if (!k_stream) return;
    check_apart("k_stream", *k_stream);
    check_apart("v_stream", *v_stream);
  }

  // Each element of a cache that is written has a place of its own. Of dimensions in the order of their
  // strides, one step is then longer than all shorter dimensions together.
  static void check_apart(const char* name, const Tensor& t) {
    if (t.numel() == 0) return;
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
    check_type(kRotaryCos, *cos, q);
    check_type(kRotarySin, *sin, q);
    check_rank(kRotaryCos, *cos);
    Extents e = extents();
    e[Dim::positions] = cos->size(0);
    e[Dim::half_rotary] = cos->size(1);
    check_shape(kRotarySin, *sin, e);
    check(rotary_dim() % 16 == 0 && rotary_dim() <= shape.headdim, "rotary_dim is ", rotary_dim(),
          ", accepted: multiples of 16 up to headdim ", shape.headdim);
    check(cos->is_contiguous() && sin->is_contiguous(),
          "rotary_cos and rotary_sin must be contiguous");
  }
};

// All params except the outputs.
inline DecodeParams params_of(const KvCache& c) {
  DecodeParams p{};
  p.dtype = dtype_of(c.q);
  p.shape = c.shape;
  set_views(p, false, {{kQ, c.q}, {kKCache, c.k_cache}, {kVCache, c.v_cache}});
  if (c.lam) set_views(p, false, {{kLam, *c.lam}});
  if (c.k) set_views(p, false, {{kKNew, *c.k}, {kVNew, *c.v}});
  if (c.k_stream) set_views(p, false, {{kKStream, *c.k_stream}, {kVStream, *c.v_stream}});
  p.cache = c.cache();
  p.softmax_scale = c.softmax_scale;
  p.softcap = c.softcap;
  p.mask = c.mask();
  p.norm = norm_of(c.norm_weight, c.norm_eps, c.out_scale);
  p.num_splits = c.num_splits;
  p.groups.signals = signals_of(c.q);
  p.groups.q = map_stride(kQ, c.q, false);
  return p;
}

}  // namespace diffattn::bindings
