// The decode kernel: few query rows against many cached keys, which are read once for all of them.
//
// Rows are packed: those of all query heads of a KV head are one list, and the 16 rows of an mma are
// eight of the list for component 1 and the same eight for component 2. So one fragment of K1, K2
// or V serves a whole group of heads, and one product with V serves both components. Warps form
// groups; each group takes its own blocks of 16 keys, which its row warps share.
#pragma once
#include "decode.h"
#include "dependent.cuh"
#include "logits.cuh"
#include "merge.cuh"
#include "products.cuh"
#include "stream.cuh"

namespace diffattn::cuda::decoding {

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams params,
                  const __grid_constant__ DecodePlan plan) {
  extern __shared__ __align__(1024) char smem[];
  const Shape& shape = params.shape;
  const SplitPlace place(plan, params.mask, T::kOneBlock, T::kSinks && params.cache.ring.slots);
  const Role role(T::kGroupThreads);
  const CachedSequence sequence(params, plan, place.batch, place.in_ring);
  const PackedRows rows(plan, place.row_block);
  const SeenKeys<T::kSinks> seen(params, sequence, rows, place.head_k);
  const Splits splits(place.splits, plan.least_blocks, seen.blocks());
  const Range blocks = splits.blocks(place.split);

  KeyStream<T> stream(params, plan, place, sequence, seen, blocks, role, smem);
  stream.start();

  // While the first copies are in flight.
  append_share<T>(params, plan, place, sequence);
  if (plan.most_splits > 1) {
    if (!kMayDepend && place.split == 0) store_counts(plan, place, rows, splits.count());
    if (blocks.begin >= blocks.end) return;
  }

  char* const q_tiles = smem + T::last_slots(shape);
  copy_queries<T>(q_tiles, params, place, sequence, rows);
  __syncthreads();  // Q of all rows is in shared memory: each warp may load its own
  typename T::Queries q;
  load_queries<T>(q, q_tiles, role);
  __syncthreads();  // all warps have Q in registers: the slots where it lay may be filled

  const bool only_copies = !T::kOneBlock && rows.begin + role.first_row() >= rows.end;
  const int lane_k = lane_of_keys<T>(shape, role.lane), lane_v = lane_of_values<T>(role.lane);
  Softmax<1> softmax(T::kCapped ? params.softcap : params.softmax_scale);
  RegisterOrigins origins;
  typename T::O o = {};
  int block = blocks.begin + role.group;
  do {
    const SeenInterval now = seen.of(block);
    const LaneMask lane_mask(now.mask, rows, role);
    for (const int end = min(now.blocks.end, blocks.end); block < end; block += T::kGroups) {
      const char* const k = stream.next_keys();
      typename T::P p;
      if (!only_copies) {
        typename T::Logits s;
        multiply_scores<T>(s, q, k + lane_k, params);
        const int key = now.blocks.key_of(block);
        const bool found = stream.found(block);
        if (!lane_mask.all_seen(key) || !found) lane_mask.hide(s, key, found);
        exponentiate<T>(p, s, o, softmax, origins, role.lane);
      }
      const char* const v = stream.next_values();
      if (!only_copies) multiply_pv<T>(o, p, v + lane_v);
    }
  } while (T::kSinks && block < blocks.end);
  // All warps have read their last slots, and no copies are under way: the ring may be overwritten.
  __syncthreads();

  const GroupMerge<T> merge(smem, role);
  typename GroupMerge<T>::Share share;
  const RowTotals totals = merge.run(softmax, origins, o, share);
  DecodeEpilogue<T>(params, plan, place, rows, role, merge).run(totals, share);
}

template <class T>
void launch_decode_kernel(const DecodeParams& params, const DecodePlan& plan,
                          const Launch& launch) {
  const Shape& shape = params.shape;
  const int64_t ctas = plan.row_blocks.divisor * plan.units;
  check_size("decode: blocks of rows x heads x splits x batch", ctas, kMaxCtas);
  const int slots = T::kGroups * T::slot_bytes(shape), q_bytes = T::kRowWarps * T::QTile::kBytes;
  const int ring = T::last_slots(shape) + (slots > q_bytes ? slots : q_bytes);
  const int bytes = ring > GroupMerge<T>::kBytes ? ring : GroupMerge<T>::kBytes;
  const auto kernel = decode_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "decode: shared memory");
  start("decode: launch", kernel, ctas, T::kThreads, bytes, launch, params, plan);
}

template <class Element, int kHeadDim, int kHeadDimV, int kRows>
void launch_decode(const DecodeParams& params, const DecodePlan& plan, const Launch& launch) {
  constexpr int kRowWarps = kRows / 8, kGroups = kRows == kFewRows ? 4 : 2;
  using WithSinks = DecodeTraits<Element, kHeadDim, kHeadDimV, kGroups, kRowWarps, true>;
  using Plain = DecodeTraits<Element, kHeadDim, kHeadDimV, kGroups, kRowWarps, false>;
  if constexpr (kRows == kManyRows)
    if (params.softcap > 0)  // whatever the mask: one kernel more to compile, not two
      return launch_decode_kernel<Capped<WithSinks>>(params, plan, launch);
  if (params.mask.sink > 0 || params.cache.ring.slots)
    launch_decode_kernel<WithSinks>(params, plan, launch);
  else
    launch_decode_kernel<Plain>(params, plan, launch);
}

}  // namespace diffattn::cuda::decoding
