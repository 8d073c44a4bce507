// The tensors of each call, listed once: their dimensions, what they hold, what a call does with them. The
// bindings check tensors and fill params by these lists. From them a test that watches a launch knows what
// memory it may touch.
#pragma once
#include <cstddef>
#include <type_traits>

#include "diffattn.h"

namespace diffattn {

enum class Dim {
  batch,
  blocks,  // in words: see name_of
  seqlen_q,
  seqlen_k,
  seqlen_new,
  slots,  // rows
  sequences,
  ring_slots,  // of the ring that streaming heads may have
  groups,      // of maps: nheads, where each has one signal map
  nheads,
  nheads_k,
  cached_heads,     // KV heads of the caches:
  streaming_heads,  // all, or those that a ring does not have
  maps,
  k_maps,  // the signal's and the noise's
  headdim,
  headdim_v,
  halves,  // of V: 2, or 1 where V is as wide as Q
  half_headdim_v,
  offsets,
  max_blocks,
  positions,
  half_rotary,  // of index tensors and tables
};
constexpr int kDims = int(Dim::half_rotary) + 1;

// The users' names. A packed batch has one dimension instead of batch and rows.
constexpr const char* name_of(Dim dim, bool packed = false) {
  switch (dim) {
    case Dim::batch:
      return "batch";
    case Dim::blocks:
      return "batch_cache or num_blocks";
    case Dim::seqlen_q:
      return packed ? "total_q" : "seqlen_q";
    case Dim::seqlen_k:
      return packed ? "total_k" : "seqlen_k";
    case Dim::seqlen_new:
      return "seqlen_new";
    case Dim::slots:
      return "seqlen_cache or page_size";
    case Dim::sequences:
      return "batch_cache";
    case Dim::ring_slots:
      return "sinks + ring";
    case Dim::groups:
    case Dim::nheads:
      return "nheads";
    case Dim::nheads_k:
    case Dim::cached_heads:
      return "nheads_k";
    case Dim::streaming_heads:
      return "streaming heads";
    case Dim::maps:
      return "2";
    case Dim::k_maps:
      return "1 or 2";
    case Dim::headdim:
      return "headdim";
    case Dim::headdim_v:
      return "headdim_v";
    case Dim::halves:
      return "2";
    case Dim::half_headdim_v:
      return "headdim";
    case Dim::offsets:
      return "batch + 1";
    case Dim::max_blocks:
      return "max_blocks";
    case Dim::positions:
      return "seqlen_ro";
    case Dim::half_rotary:
      return "rotary_dim / 2";
  }
  return "";
}

// The stride of a view that steps along a dimension. Null where there is none: maps are views of their own,
// and the elements of a row are contiguous.
constexpr int64_t View::* stride_along(Dim dim) {
  switch (dim) {
    case Dim::batch:
    case Dim::blocks:
    case Dim::sequences:
      return &View::batch;
    case Dim::seqlen_q:
    case Dim::seqlen_k:
    case Dim::seqlen_new:
    case Dim::slots:
    case Dim::ring_slots:
      return &View::row;
    case Dim::groups:
    case Dim::nheads:
    case Dim::nheads_k:
    case Dim::cached_heads:
    case Dim::streaming_heads:
      return &View::head;
    case Dim::halves:
      return &View::half;
    default:
      return nullptr;
  }
}
constexpr bool is_of_maps(Dim dim) { return dim == Dim::maps || dim == Dim::k_maps; }

enum class Holds { elements, sums, indices };  // the tensors' dtype, the compute type, int32

// written: every element that belongs to a sequence, whatever it held before; updated: some of them.
enum class Role { read, written, updated };

struct Operand {
  const char* name;
  Holds holds;
  Role role;
  int rank;
  Dim dims[5];
};

inline constexpr Operand kQ{"q",
                            Holds::elements,
                            Role::read,
                            5,
                            {Dim::batch, Dim::seqlen_q, Dim::groups, Dim::maps, Dim::headdim}},
    kK{"k",
       Holds::elements,
       Role::read,
       5,
       {Dim::batch, Dim::seqlen_k, Dim::nheads_k, Dim::k_maps, Dim::headdim}},
    kV{"v",
       Holds::elements,
       Role::read,
       5,
       {Dim::batch, Dim::seqlen_k, Dim::nheads_k, Dim::halves, Dim::half_headdim_v}},
    kLam{"lam", Holds::sums, Role::read, 3, {Dim::batch, Dim::seqlen_q, Dim::nheads}},
    kNormWeight{"norm_weight", Holds::sums, Role::read, 1, {Dim::headdim_v}},
    kCuSeqlensQ{"cu_seqlens_q", Holds::indices, Role::read, 1, {Dim::offsets}},
    kCuSeqlensK{"cu_seqlens_k", Holds::indices, Role::read, 1, {Dim::offsets}};

// What forward writes, and backward reads again.
constexpr Operand output(const char* name, Role role) {
  return {name, Holds::elements, role, 4, {Dim::batch, Dim::seqlen_q, Dim::nheads, Dim::headdim_v}};
}
constexpr Operand statistics(const char* name, Role role) {
  return {name, Holds::sums, role, 3, {Dim::batch, Dim::nheads, Dim::seqlen_q}};
}
constexpr Operand map_statistics(const char* name, Role role) {
  return {name, Holds::sums, role, 4, {Dim::maps, Dim::batch, Dim::groups, Dim::seqlen_q}};
}
constexpr Operand written_as(const char* name, Operand like) {
  like.name = name;
  like.role = Role::written;
  return like;
}

inline constexpr Operand kOut = output("out", Role::written), kO = output("o", Role::written),
                         kOComplement = output("o2", Role::written),
                         kLse = map_statistics("lse", Role::written),
                         kRstd = statistics("rstd", Role::written);

inline constexpr Operand kDout = output("dout", Role::read), kSavedO = output("o", Role::read),
                         kSavedOComplement = output("o2", Role::read),
                         kSavedLse = map_statistics("lse", Role::read),
                         kSavedRstd = statistics("rstd", Role::read),
                         kDlse = map_statistics("dlse", Role::read), kDq = written_as("dq", kQ),
                         kDk = written_as("dk", kK), kDv = written_as("dv", kV),
                         kDlam = written_as("dlam", kLam),
                         kDnormWeight = written_as("dnorm_weight", kNormWeight);

// Each map's own result, and gradients of a part of the keys.
inline constexpr Operand kComponents{
    "o",
    Holds::sums,
    Role::written,
    5,
    {Dim::batch, Dim::seqlen_q, Dim::groups, Dim::maps, Dim::headdim_v}};
constexpr Operand in_sums(Operand o) {
  o.holds = Holds::sums;
  return o;
}
inline constexpr Operand kPartialDq = in_sums(kDq), kPartialDk = in_sums(kDk),
                         kPartialDv = in_sums(kDv);

inline constexpr Operand kKCache{
    "k_cache",
    Holds::elements,
    Role::updated,
    5,
    {Dim::blocks, Dim::slots, Dim::cached_heads, Dim::k_maps, Dim::headdim}},
    kVCache{"v_cache",
            Holds::elements,
            Role::updated,
            5,
            {Dim::blocks, Dim::slots, Dim::cached_heads, Dim::halves, Dim::half_headdim_v}},
    kKStream{"k_stream",
             Holds::elements,
             Role::updated,
             5,
             {Dim::sequences, Dim::ring_slots, Dim::streaming_heads, Dim::k_maps, Dim::headdim}},
    kVStream{
        "v_stream",
        Holds::elements,
        Role::updated,
        5,
        {Dim::sequences, Dim::ring_slots, Dim::streaming_heads, Dim::halves, Dim::half_headdim_v}},
    kKNew{"k",
          Holds::elements,
          Role::read,
          5,
          {Dim::batch, Dim::seqlen_new, Dim::nheads_k, Dim::k_maps, Dim::headdim}},
    kVNew{"v",
          Holds::elements,
          Role::read,
          5,
          {Dim::batch, Dim::seqlen_new, Dim::nheads_k, Dim::halves, Dim::half_headdim_v}},
    kCacheSeqlens{"cache_seqlens", Holds::indices, Role::read, 1, {Dim::batch}},
    kCacheBatchIdx{"cache_batch_idx", Holds::indices, Role::read, 1, {Dim::batch}},
    kCacheLeftpad{"cache_leftpad", Holds::indices, Role::read, 1, {Dim::batch}},
    kBlockTable{"block_table", Holds::indices, Role::read, 2, {Dim::batch, Dim::max_blocks}},
    kRotaryCos{"rotary_cos", Holds::elements, Role::read, 2, {Dim::positions, Dim::half_rotary}},
    kRotarySin{"rotary_sin", Holds::elements, Role::read, 2, {Dim::positions, Dim::half_rotary}};

// V, its gradient and its caches are listed in halves. A tensor may also have whole rows.
constexpr bool is_in_halves(const Operand& o) { return o.rank == 5 && o.dims[3] == Dim::halves; }
constexpr Operand with_whole_rows(Operand o) {
  o.rank = 4;
  o.dims[3] = Dim::headdim_v;
  return o;
}

// Calls f(operand, view) for each operand of params that is a view, and f(operand, signal, noise) for one with
// a dimension of maps. Params: FwdParams, BwdParams or DecodeParams, const or not.
template <class Params, class F>
void for_each_view(Params& p, const F& f) {
  auto &signal = p.maps[kSignal], &noise = p.maps[kNoise];
  f(kQ, signal.q, noise.q);
  f(kLam, p.lam);
  if constexpr (std::is_same_v<std::remove_const_t<Params>, DecodeParams>) {
    f(kKCache, signal.k_cache, noise.k_cache);
    f(kVCache, p.v_cache);
    f(kKStream, signal.k_stream, noise.k_stream);
    f(kVStream, p.v_stream);
    f(kKNew, signal.k_new, noise.k_new);
    f(kVNew, p.v_new);
    f(kOut, p.out);
    f(kComponents, signal.o, noise.o);
    f(kLse, signal.lse, noise.lse);
  } else {
    f(kK, signal.k, noise.k);
    f(kV, p.v);
    if constexpr (std::is_same_v<std::remove_const_t<Params>, FwdParams>) {
      f(kOut, p.out);
      f(kComponents, signal.o, noise.o);
      f(kO, p.o);
      f(kOComplement, p.o_complement);
      f(kLse, signal.lse, noise.lse);
      f(kRstd, p.rstd);
    } else {
      auto &of_signal = p.map_grads[kSignal], &of_noise = p.map_grads[kNoise];
      f(kSavedO, p.o);
      f(kSavedOComplement, p.o_complement);
      f(kSavedLse, signal.lse, noise.lse);
      f(kSavedRstd, p.rstd);
      f(kDout, p.dout);
      f(kDlse, of_signal.dlse, of_noise.dlse);
      f(p.partial ? kPartialDq : kDq, of_signal.dq, of_noise.dq);
      f(p.partial ? kPartialDk : kDk, of_signal.dk, of_noise.dk);
      f(p.partial ? kPartialDv : kDv, p.dv);
      f(kDlam, p.dlam);
    }
  }
}

// Calls f(operand, data, row stride) for each operand of params that is a pointer: vectors, and tables of
// contiguous rows.
template <class Params, class F>
void for_each_pointer(const Params& p, const F& f) {
  f(kNormWeight, p.norm.weight, 0);
  if constexpr (std::is_same_v<Params, DecodeParams>) {
    const Cache& c = p.cache;
    f(kCacheSeqlens, c.seqlens, 0);
    f(kCacheBatchIdx, c.batch_idx, 0);
    f(kCacheLeftpad, c.leftpad, 0);
    f(kBlockTable, c.paging.block_table, c.paging.stride);
    f(kRotaryCos, c.rotary.cos, c.rotary.dim / 2);
    f(kRotarySin, c.rotary.sin, c.rotary.dim / 2);
  } else {
    f(kCuSeqlensQ, p.varlen.cu_seqlens_q, 0);
    f(kCuSeqlensK, p.varlen.cu_seqlens_k, 0);
    if constexpr (std::is_same_v<Params, BwdParams>) f(kDnormWeight, p.dnorm_weight, 0);
  }
}

// How large each dimension is.
struct Extents {
  int64_t of[kDims] = {};
  bool packed = false;

  int64_t operator[](Dim dim) const { return of[int(dim)]; }
  int64_t& operator[](Dim dim) { return of[int(dim)]; }
};

inline Extents extents_of(const Shape& s, const Groups& groups = {}) {
  Extents e;
  e[Dim::batch] = s.batch;
  e[Dim::offsets] = s.batch + 1;
  e[Dim::seqlen_q] = s.seqlen_q;
  e[Dim::seqlen_k] = s.seqlen_k;
  e[Dim::groups] = groups.count(s);
  e[Dim::nheads] = s.nheads;
  e[Dim::nheads_k] = e[Dim::cached_heads] = s.nheads_k;
  e[Dim::maps] = groups.signals + 1;
  e[Dim::k_maps] = s.k_components;
  e[Dim::headdim] = s.headdim;
  e[Dim::headdim_v] = s.headdim_v;
  e[Dim::halves] = s.headdim_v == s.headdim ? 1 : 2;
  e[Dim::half_headdim_v] = s.headdim_v / e[Dim::halves];
  return e;
}

inline Extents extents_of(const Shape& s, const Varlen& varlen, const Groups& groups) {
  Extents e = extents_of(s, groups);
  e.packed = varlen.cu_seqlens_q != nullptr;
  if (!e.packed) return e;
  e[Dim::seqlen_q] = varlen.total_q;
  e[Dim::seqlen_k] = varlen.total_k;
  return e;
}

// With a cache: its sequences, or pages, and the rows of each.
inline Extents extents_of(const Shape& s, int64_t blocks, int64_t slots,
                          const Groups& groups = {}) {
  Extents e = extents_of(s, groups);
  e[Dim::blocks] = blocks;
  e[Dim::slots] = slots;
  return e;
}

inline Extents extents_of(const Shape& s, const Cache& cache, const Mask& mask,
                          const Groups& groups) {
  const Paging& paging = cache.paging;
  Extents e =
      extents_of(s, cache.blocks, paging.block_table ? paging.page_size : s.seqlen_k, groups);
  if (const Ring& ring = cache.ring; ring.slots) {
    e[Dim::sequences] = paging.block_table ? s.batch : cache.blocks;
    e[Dim::ring_slots] = ring.sink_slots + ring.slots;
    e[Dim::cached_heads] = mask.full_heads();
    e[Dim::streaming_heads] = s.nheads_k - mask.full_heads();
  }
  e[Dim::seqlen_new] = cache.seqlen_new;
  e[Dim::max_blocks] = paging.page_size ? s.seqlen_k / paging.page_size : 0;
  e[Dim::positions] = cache.rotary.seqlen;
  e[Dim::half_rotary] = cache.rotary.dim / 2;
  return e;
}

template <class Params>
Extents extents(const Params& p) {
  if constexpr (std::is_same_v<Params, DecodeParams>)
    return extents_of(p.shape, p.cache, p.mask, p.groups);
  else
    return extents_of(p.shape, p.varlen, p.groups);
}

}  // namespace diffattn
