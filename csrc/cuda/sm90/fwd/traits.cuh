// The forward's tiles, and where they lie in shared memory.
#pragma once
#include "../shared/wgmma.cuh"
#include "fwd.h"

namespace diffattn::cuda::sm90 {

// Arrivals and bytes in shared memory. Of each pair "full" is signalled by copies, "empty" by the warps that have
// read the tile.
struct Barriers {
  static constexpr int kStages = 2;
  uint64_t q_full[2];  // by place
  uint64_t q_empty;    // where both maps' queries have one place
  uint64_t k_full[kStages], k_empty[kStages];
  uint64_t v_full[kStages], v_empty[kStages];
};

template <class Element_, int kHeadDim_, int kHeadDimV_>
struct FwdTraits {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kWarpgroup = 128;  // threads
  static constexpr int kConsumers = 2;    // warpgroups, of 64 rows each
  static constexpr int kConsumerThreads = kConsumers * kWarpgroup;
  static constexpr int kThreads = kWarpgroup + kConsumerThreads;
  // Of each thread. setmaxnreg moves them from the producer to the consumers.
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

  static constexpr int kRows = kTileRows<kHeadDim, kHeadDimV>.queries;
  static constexpr int kKeys = kTileRows<kHeadDim, kHeadDimV>.keys;
  static constexpr int kStages = Barriers::kStages;
  static_assert(kRows == kConsumers * 64);

  using QTile = SwizzledTile<kRows, kHeadDim>;
  using KTile = SwizzledTile<kKeys, kHeadDim>;
  using VTile = SwizzledTile<kKeys, kHeadDimV>;

  // Where there is no room for the queries of both maps, the second's take the place of the first's.
  static constexpr int kQTiles = kHeadDim <= 64 ? 2 : 1;

  // Of a warp's O2, in chunks of columns. Its outputs are staged there too. Of 256 columns only 24 bits of each
  // number fit.
  static constexpr int kChunkCols = 64, kChunks = kHeadDimV / kChunkCols;
  static constexpr int kChunkTiles = kChunkCols / 8;
  static constexpr int kStashBits = kHeadDimV <= 128 ? 32 : 24;
  static constexpr int kChunkBytes = 16 * kChunkCols * kStashBits / 8;

  // Tiles begin at multiples of 1,024 bytes, because swizzles do.
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + kQTiles * QTile::kBytes;
  static constexpr int kV = kK + kStages * KTile::kBytes;
  static constexpr int kStash = kV + kStages * VTile::kBytes;
  static constexpr int kStashBytes = kChunks * kChunkBytes;  // one warp's
  static constexpr int kOrigins = kStash + kConsumerThreads / 32 * kStashBytes;
  static constexpr int kBarriers = kOrigins + 2 * kConsumerThreads * 4;
  static constexpr int kPlace = kBarriers + int(sizeof(Barriers)), kPlaceBytes = 64;
  static constexpr int kSmemBytes = kPlace + kPlaceBytes;
  static_assert(kSmemBytes <= 227 * 1024, "what an sm_90 has");
};

// Where the queries of a map lie, and which phase of its barriers is theirs. The noise's come first.
template <class T>
struct QuerySlot {
  int tile;
  uint32_t parity;

  __device__ explicit QuerySlot(int map)
      : tile(T::kQTiles == 2 ? map : 0), parity(T::kQTiles == 1 && map == kSignal) {}
};

template <class T>
__device__ Barriers& barriers_in(char* smem) {
  return *reinterpret_cast<Barriers*>(smem + T::kBarriers);
}

// Where a tile of keys or values lies, and which phase of its barriers is the tile's; then those of the next tile.
struct Turn {
  uint32_t stage = 0, parity = 0;
  static_assert(Barriers::kStages == 2);

  __device__ void advance() {
    parity ^= stage;
    stage ^= 1;
  }
};

}  // namespace diffattn::cuda::sm90
