// The caches of heads that stream, apart from those of full heads: their checks, and what they hold.
#pragma once
#include "arguments.h"
#include "views.h"

namespace diffattn::bindings {

constexpr int64_t kRingBlock = 16;  // keys that kernels read at a time

// Its slots as far as the mask tells them: check_ring says whether they suffice.
inline Ring ring_of(const DecodeArguments& a) {
  const int64_t sinks = (a.sink_size + kRingBlock - 1) / kRingBlock * kRingBlock;
  return {sinks, a.k_stream->size(1) - sinks};
}

// Both or none, of the ranks that other checks rely on.
inline void check_together(const DecodeArguments& a) {
  check(a.k_stream.has_value() == a.v_stream.has_value(),
        "k_stream and v_stream must be given together");
  if (!a.k_stream) return;
  check_rank(kKStream, *a.k_stream);
  check_rank(kVStream, *a.v_stream);
}

// That the slots hold what the rows see and the step does not bring: the window of the first row.
inline void check_slots(const DecodeArguments& a, const Shape& s) {
  const int64_t most = int64_t(1) << 40, rows = s.seqlen_q - (a.k ? a.k->size(1) : 0);
  check(a.window_left >= 0 && a.window_left <= most && a.sink_size <= most,
        "window_size[0] is unbounded or sink_size too large, accepted with k_stream: up to what it "
        "holds");
  const Ring ring = ring_of(a);
  const int64_t least = a.window_left + 1 + std::max(rows, int64_t(0));
  check(ring.slots >= least && ring.slots % kRingBlock == 0, "k_stream has ", a.k_stream->size(1),
        " slots, accepted: ", ring.sink_slots, " for sink_size ", a.sink_size,
        " and a multiple of 16 behind them, at least ", least,
        " for the window and for query rows that bring no key");
}

inline void check_ring(const DecodeArguments& a, const Shape& s) {
  const Tensor &k = *a.k_stream, &v = *a.v_stream;
  check_type(kKStream, k, a.q);
  check_type(kVStream, v, a.q);
  check(last_is_contiguous(k) && last_is_contiguous(v),
        "k_stream and v_stream must be contiguous in their last dimension: they are written in "
        "place, "
        "never copied");
  check(a.window_right == 0, "k_stream needs a causal mask (window_right = 0), window_right is ",
        a.window_right);
  check(a.seqlens.has_value(),
        "cache_seqlens is None, but k_stream is given: a ring does not tell how many keys "
        "there are");
  check(!a.block_table || a.k_cache.size(2) > 0,
        "block_table is given, but k_cache has no heads: those of k_stream have no pages");
  check_slots(a, s);
  const uint64_t all = s.nheads_k >= 64 ? ~uint64_t(0) : (uint64_t(1) << s.nheads_k) - 1;
  const bool every = a.streaming_heads == -1;
  const int64_t streaming =
      every ? s.nheads_k : __builtin_popcountll(uint64_t(a.streaming_heads) & all);
  check(streaming > 0 && k.size(2) == streaming, "k_stream has ", k.size(2), " heads, k_cache ",
        a.k_cache.size(2), ", accepted: as streaming_heads says, ", streaming, " and ",
        s.nheads_k - streaming);
  Extents e = extents_of(s);
  e[Dim::sequences] = a.block_table ? s.batch : a.k_cache.size(0);
  e[Dim::ring_slots] = k.size(1);
  e[Dim::streaming_heads] = streaming;
  check_shape(kKStream, k, e);
  check_shape(kVStream, v, e);
}

}  // namespace diffattn::bindings
