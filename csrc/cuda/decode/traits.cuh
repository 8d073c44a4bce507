// The sizes of a decode kernel: threads, tiles, the ring of slots in shared memory, registers.
#pragma once
#include "../common/tile.cuh"
#include "cache.cuh"

namespace diffattn::cuda::decoding {

template <class Element_, int kHeadDim_, int kHeadDimV_, int kGroups_, int kRowWarps_, bool kSinks_>
struct DecodeTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kGroups = kGroups_, kRowWarps = kRowWarps_;
  // Whether keys may be hidden between those that a row sees, or lie in a ring. Kernels of their own, because telling
  // costs others up to a quarter of their instructions.
  static constexpr bool kSinks = kSinks_;
  static constexpr bool kCapped = false;  // see Capped
  static constexpr int kGroupThreads = 32 * kRowWarps, kThreads = kGroups * kGroupThreads;
  static constexpr int kRows = 8 * kRowWarps;        // packed
  static constexpr bool kOneBlock = kRowWarps == 1;  // few rows are one block of them

  using QTile = Tile<16, kHeadDim>;  // eight rows of q1, and the same eight of q2
  using VTile = Tile<kBlockKeys, kHeadDimV>;

  // What a warp has in registers, for its eight rows. In all of them row g of an mma's 16 rows is
  // row g of component 1, and row g + 8 is the same row of component 2.
  using Queries = uint32_t[kHeadDim / 16][4];  // [depth]
  using Logits = float[1][kBlockKeys / 8][4];  // [.., key tile]
  using P = uint32_t[1][kBlockKeys / 16][4];   // [.., keys]
  using O = float[1][kHeadDimV / 8][4];        // [.., column tile]

  // K2 lies to the right of K1, if there is a K2; the pitch is that of a Tile of what there is.
  __host__ __device__ static int k_pitch(const Shape& shape) {
    return int(shape.k_components) * kHeadDim * 2 + 16;
  }
  // A slot has the keys of a block or its values.
  __host__ __device__ static int slot_bytes(const Shape& shape) {
    const int k = k_pitch(shape), v = VTile::kPitch;
    return kBlockKeys * (k > v ? k : v);
  }
  // The last slots of all groups. They are filled last, so Q lies there until it is in registers.
  __host__ __device__ static int last_slots(const Shape& shape) {
    return (kSlots - 1) * kGroups * slot_bytes(shape);
  }
  // At most what fits 99 KB, which every device has; Q may need more room than the last slots. If the head dim
  // allows it, two CTAs with few rows share a multiprocessor; one with many rows fills it.
  static constexpr int kSmem = 99 << 10, kMostSlots = kRowWarps == 1 ? 4 : 6;
  static constexpr int kWidestSlots = kGroups * kBlockKeys * (kHeadDim * 4 + 16);
  static constexpr int kFit = (kSmem - kRowWarps * QTile::kBytes) / kWidestSlots + 1;
  static constexpr int kFitAll = kSmem / kWidestSlots < kFit ? kSmem / kWidestSlots : kFit;
  static constexpr int kSlots = kFitAll < kMostSlots ? kFitAll : kMostSlots;
  static_assert(kSlots >= 3 && kHeadDimV <= 2 * kHeadDim);
};

}  // namespace diffattn::cuda::decoding
