// The decode kernel: few query rows against many cached keys, which are read once for all of them.
//
// Rows are packed: those of all query heads of a KV head are one list, and an mma's 16 rows are
// eight of the list for component 1 and the same eight for component 2. So one fragment of K1, K2
// or V serves a whole group of heads, and one product with V serves both components. Warps form
// groups; each group takes blocks of 16 keys of its own, which its row warps share.
#pragma once
#include "../shared/barrier.cuh"
#include "decode.h"
#include "merge.cuh"
#include "stream.cuh"

namespace diffattn::cuda::sm80 {

template <class Element_, int kHeadDim_, int kHeadDimV_, int kGroups_, int kRowWarps_>
struct DecodeTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kGroups = kGroups_, kRowWarps = kRowWarps_;
  static constexpr int kGroupThreads = 32 * kRowWarps, kThreads = kGroups * kGroupThreads;
  static constexpr int kRows = 8 * kRowWarps;        // packed
  static constexpr bool kOneBlock = kRowWarps == 1;  // few rows are one block of them

  using QTile = Tile<16, kHeadDim>;  // eight rows of q1, the same of q2
  using VTile = Tile<kBlockKeys, kHeadDimV>;

  // K2 lies to the right of K1, if there is one; the pitch is that of a Tile of what there is.
  __host__ __device__ static int k_pitch(const Shape& shape) {
    return int(shape.k_components) * kHeadDim * 2 + 16;
  }
  // A slot has a block's keys or its values.
  __host__ __device__ static int slot_bytes(const Shape& shape) {
    const int k = k_pitch(shape), v = VTile::kPitch;
    return kBlockKeys * (k > v ? k : v);
  }
  // At most what fits 99 KB, which every device has. Q takes the place of the last slot of all groups,
  // and may want more. Two CTAs of a few rows share a processor, where the head dim lets them; many
  // rows fill it.
  static constexpr int kSmem = 99 << 10, kMostSlots = kRowWarps == 1 ? 4 : 6;
  static constexpr int kWidestSlots = kGroups * kBlockKeys * (kHeadDim * 4 + 16);
  static constexpr int kFit = (kSmem - kRowWarps * QTile::kBytes) / kWidestSlots + 1;
  static constexpr int kFitAll = kSmem / kWidestSlots < kFit ? kSmem / kWidestSlots : kFit;
  static constexpr int kSlots = kFitAll < kMostSlots ? kFitAll : kMostSlots;
  static_assert(kSlots >= 3 && kHeadDimV <= 2 * kHeadDim);
  static_assert(kThreads >= kMostTokenChunks);
};

// Q of all row warps, rotated, into the slot that is filled last. The sign of a negative scale goes
// into Q, so that the largest product stays the largest logit.
template <class T>
__device__ void load_queries(char* tiles, const DecodeParams& p, const CachedSequence& s,
                             int head_k, const PackedRows& rows) {
  using Element = typename T::Element;
  constexpr int kChunks = T::kHeadDim / kChunk;
  const Rotator<Element> rotator(p.cache.rotary);
  const bool ordered = p.mask.left >= 0 || p.mask.right >= 0;
  const uint32_t sign = p.softmax_scale < 0 ? 0x80008000u : 0;
  for (int i = threadIdx.x; i < T::kRowWarps * 16 * kChunks; i += T::kThreads) {
    const int tile = i / (16 * kChunks), row = i / kChunks % 16, chunk = i % kChunks;
    const int m = rows.begin + tile * 8 + row % 8;
    uint4 x{};
    if (m < rows.end && chunk * kChunk < p.shape.headdim) {
      const int q_row = rows.row_of(m), head = rows.head_of(m, head_k);
      const View& view = p.maps[row / 8].q;
      const auto* from =
          row_of<const Element>(view, s.batch * view.batch + q_row * view.row + head * view.head);
      x = rotator.load(from, chunk * kChunk, s.cached + (ordered ? q_row : 0));
    }
    char* const to = tiles + tile * T::QTile::kBytes + T::QTile::offset(row, chunk * kChunk);
    *reinterpret_cast<uint4*>(to) = {x.x ^ sign, x.y ^ sign, x.z ^ sign, x.w ^ sign};
  }
}

// Q of both components times one component's keys. k and v, here and below, are where this lane's row
// of the fragments begins.
template <class T>
__device__ void multiply_qk(float (&s)[1][2][4], const uint32_t (&q)[T::kHeadDim / 16][4],
                            const char* k) {
#pragma unroll
  for (int i = 0; i < 4; ++i) s[0][0][i] = s[0][1][i] = 0;
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth) {
    uint32_t b[4];  // [key tile, half of the depth]
    load_matrices(b, k + depth * 32);
    mma<typename T::Element>(s[0][0], q[depth], b[0], b[1]);
    mma<typename T::Element>(s[0][1], q[depth], b[2], b[3]);
  }
}

// O += P·V, both components.
template <class T>
__device__ void multiply_pv(float (&o)[1][T::kHeadDimV / 8][4], const uint32_t (&p)[1][1][4],
                            const char* v) {
#pragma unroll
  for (int col = 0; col < T::kHeadDimV / 16; ++col) {
    uint32_t b[4];  // [column tile, half of the keys]
    load_matrices_transposed(b, v + col * 32);
    mma<typename T::Element>(o[0][2 * col], p[0][0], b[0], b[1]);
    mma<typename T::Element>(o[0][2 * col + 1], p[0][0], b[2], b[3]);
  }
}

// The logits of a block for one warp's rows: upper half component 1, lower half component 2. The
// product with K1 has logits of q2 too, which nobody asked for, and that with K2 of q1.
template <class T>
__device__ void block_logits(float (&s)[1][2][4], const uint32_t (&q)[T::kHeadDim / 16][4],
                             const char* k, bool shared_k) {
  multiply_qk<T>(s, q, k);
  if (shared_k) return;
  float s2[1][2][4];
  multiply_qk<T>(s2, q, k + T::kHeadDim * 2);
#pragma unroll
  for (int n = 0; n < 2; ++n) s[0][n][2] = s2[0][n][2], s[0][n][3] = s2[0][n][3];
}

// Hides keys outside `visible`, counted from the block's first, from a lane's row.
__device__ inline void mask_block(float (&s)[1][2][4], Range visible, int lane) {
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = n * 8 + lane % 4 * 2 + i % 2;
      if (key < visible.begin || key >= visible.end) s[0][n][i] = -INFINITY;
    }
}

template <class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams params,
                  const __grid_constant__ DecodePlan plan) {
  using Element = typename T::Element;
  extern __shared__ __align__(1024) char smem[];
  const Shape& shape = params.shape;
  const int lane = threadIdx.x % 32, group = threadIdx.x / T::kGroupThreads;
  const int group_thread = threadIdx.x % T::kGroupThreads, row_warp = group_thread / 32;

  // Neighbouring CTAs read the same keys for other rows, then neighbouring heads of the same keys.
  int place = int(blockIdx.x), row_block = 0, head_k, split;
  if (!T::kOneBlock) plan.row_blocks(place, row_block, place);
  plan.nheads_k(place, head_k, place);
  plan.splits(place, split, place);
  const CachedSequence sequence(params, place);

  // Those that see most come first.
  const PackedRows rows(plan, T::kOneBlock ? 0 : plan.row_blocks.divisor - 1 - row_block);
  const SequenceMask mask(params.mask, int(shape.seqlen_q), sequence.keys, sequence.leftpad);
  const Splits splits(plan, mask, rows);
  const Range blocks = splits.blocks(split);
  const Pages pages(params, sequence, plan.page);

  const int slot_bytes = T::slot_bytes(shape);
  KeyStream<T> stream(params, sequence, pages, head_k, {blocks.begin + group, blocks.end},
                      splits.keys(), !plan.append_first, smem + group * slot_bytes, slot_bytes,
                      group_thread);
#pragma unroll 1
  for (int slot = 0; slot < T::kSlots - 1; ++slot) stream.issue(slot % 2);

  // While the first copies are on their way.
  if (!plan.append_first)
    append_tokens<Element>(params, sequence, pages, head_k,
                           split * plan.row_blocks.divisor + row_block,
                           plan.splits.divisor * plan.row_blocks.divisor, threadIdx.x);
  if (plan.splits.divisor > 1) {
    if (split == 0) store_counts(plan, rows, sequence.batch, head_k, splits.count());
    if (blocks.begin >= blocks.end) return;
  }

  char* const q_tiles = smem + (T::kSlots - 1) * T::kGroups * slot_bytes;
  load_queries<T>(q_tiles, params, sequence, head_k, rows);
  __syncthreads();  // Q is there
  uint32_t q[T::kHeadDim / 16][4];
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth)
    load_matrices(q[depth], q_tiles + row_warp * T::QTile::kBytes +
                                rows_first<typename T::QTile>(lane) + depth * 32);
  __syncthreads();  // all have Q in registers; its slot can be filled

  // The keys this lane's row sees, and the blocks that all rows see.
  const int first_row = rows.begin + row_warp * 8;
  const int row = rows.row_of(min(first_row + lane / 4, rows.end - 1));
  const Range seen{mask.begin(row), mask.end(row)};
  const Range full{mask.begin(rows.row_of(rows.end - 1)), mask.end(rows.row_of(rows.begin))};
  const bool idle = !T::kOneBlock && first_row >= rows.end;  // this warp only copies

  Softmax<1> softmax(params.softmax_scale);
  RegisterOrigins origins;
  float o[1][T::kHeadDimV / 8][4] =
      {};  // [.., column tile, (row g of O1, row g of O2) x 2 columns]
  const int lane_k = (lane % 8 + lane / 16 * 8) * T::k_pitch(shape) + lane / 8 % 2 * 16;
  const int lane_v = rows_first<typename T::VTile>(lane);
  // The next slot, refilling the one before it.
  const auto next = [&](bool values) {
    stream.wait();
    // All copies of the group into the next slot are there, and all have read the slot before it.
    T::kRowWarps == 1 ? __syncwarp() : named_barrier(1 + group, T::kGroupThreads);
    stream.issue(values);
    return stream.take();
  };
  constexpr bool kOdd = T::kSlots % 2;  // the slot before one of keys is refilled with keys
  for (int block = blocks.begin + group; block < blocks.end; block += T::kGroups) {
    const char* const k = next(!kOdd);
    float s[1][2][4];
    uint32_t p[1][1][4];
    if (!idle) {
      block_logits<T>(s, q, k + lane_k, shape.k_components == 1);
      const int key = block * kBlockKeys;
      const bool found = stream.found(block);
      if (key < full.begin || key + kBlockKeys > full.end || !found)
        mask_block(s, found ? Range{seen.begin - key, seen.end - key} : Range{0, 0}, lane);
      float exact[1][2];
      softmax.template exponentiate<Element>(s, p, exact);
      if (softmax.outgrown(exact)) {
        float factor[1][2];
        softmax.template raise<Element>(s, exact, factor, origins);
        softmax.template exponentiate_raised<Element>(s, p, exact, origins);
        scale_rows(o, factor);
      }
      softmax.template add<Element>(exact, p, lane, [](int, int) { return true; });
    }
    const char* const v = next(kOdd);
    if (!idle) multiply_pv<T>(o, p, v + lane_v);
  }
  __syncthreads();  // all have read their last slot, for whose copies they waited: the ring is free

  const GroupMerge<T> merge(smem, group, row_warp, lane);
  typename GroupMerge<T>::Share share;
  const RowTotals totals = merge.run(softmax, origins, o, share);
  DecodeEpilogue<T>(params, plan, merge, sequence.batch, head_k, rows, first_row, split, group,
                    lane)
      .run(totals, share);
}

template <class Element, int kHeadDim, int kHeadDimV, int kRows>
void launch_decode(const DecodeParams& params, const DecodePlan& plan, cudaStream_t stream) {
  constexpr int kRowWarps = kRows / 8, kGroups = kRows == kFewRows ? 4 : 2;
  using T = DecodeTraits<Element, kHeadDim, kHeadDimV, kGroups, kRowWarps>;
  const Shape& shape = params.shape;
  const int64_t ctas = plan.row_blocks.divisor * shape.nheads_k * plan.splits.divisor * shape.batch;
  check_size("decode: blocks of rows x heads x splits x batch", ctas, kMaxCtas);
  const int slots = T::kGroups * T::slot_bytes(shape), q_bytes = T::kRowWarps * T::QTile::kBytes;
  const int ring = (T::kSlots - 1) * slots + (slots > q_bytes ? slots : q_bytes);
  const int bytes = ring > GroupMerge<T>::kBytes ? ring : GroupMerge<T>::kBytes;
  const auto kernel = decode_kernel<T>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "decode: shared memory");
  kernel<<<unsigned(ctas), T::kThreads, bytes, stream>>>(params, plan);
  check(cudaGetLastError(), "decode: launch");
}

}  // namespace diffattn::cuda::sm80
