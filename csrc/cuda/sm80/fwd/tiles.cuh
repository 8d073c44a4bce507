// The forward kernel's tiles: how large they are, where they lie, how they are filled.
#pragma once
#include "../../common/mma.cuh"
#include "../../common/softcap.cuh"
#include "place.cuh"

namespace diffattn::cuda::sm80 {

// kSeparate: each map's own result is stored. A kernel of its own, because the other one has no register left.
template <class Element_, int kHeadDim_, int kHeadDimV_, bool kSeparate_>
struct FwdTraits {
  using Element = Element_;
  static constexpr bool kSeparate = kSeparate_;
  static constexpr bool kCapped = false;  // see Capped
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kPairs = 4, kThreads = 64 * kPairs;
  static constexpr int kRowTiles = kHeadDim <= 64 ? 2 : 1;  // of 16 rows, per pair
  static constexpr int kRows = kPairs * kRowTiles * 16;
  static constexpr int kKeys = kHeadDim <= 64 ? 64 : 32;  // per step: copied together
  static constexpr int kPartKeys = 32;                    // whose softmax is computed together
  // Whether a pair leaves out parts that none of its rows sees; at 128 no register is left to know it.
  static constexpr bool kSkips = kHeadDim < 128;
  static constexpr int kHalfV = kHeadDimV / 2;  // columns per warp

  // Both components of a row lie side by side.
  using QTile = Tile<kRows, 2 * kHeadDim>;
  using KTile = Tile<kKeys, 2 * kHeadDim>;
  using VTile = Tile<kKeys, kHeadDimV>;
  using OTile = Tile<kRowTiles * 16, kHalfV>;  // one warp's

  // Shared memory: two stages of keys and values, then what pairs hand over: P, and behind it row
  // statistics, and what each lane keeps of its far rows. Q arrives in the place of the second stage,
  // and of what follows, and leaves it for registers. Outputs take the place of all that lies before
  // the statistics.
  static constexpr int kStageBytes = KTile::kBytes + VTile::kBytes;
  static constexpr int kPBytes = kRowTiles * (kPartKeys / 16) * 32 * 16;  // one warp's
  static constexpr int kStatistics = 2 * kStageBytes + 2 * kPairs * kPBytes;
  static constexpr int kStatisticsBytes = kRowTiles * 16 * 4;  // one warp's
  static constexpr int kOrigins = kStatistics + 2 * kPairs * kStatisticsBytes;
  static constexpr int kSmemBytes = kOrigins + kThreads * kRowTiles * 2 * 4;
  static_assert(kStageBytes + QTile::kBytes <= kSmemBytes);
  static_assert(2 * kPairs * OTile::kBytes <= kStatistics);
  static_assert(kSmemBytes <= 99 * 1024, "what every device from sm_80 on has");

  // The tensor core sums some of the blocks of 16 x 16 of P (Softmax::add), evenly spread: as many as
  // a fiftieth of its other work pays for.
  static constexpr int kBlocks = kRowTiles * kKeys / 16;  // per step
  static constexpr int kProducts = kBlocks * (kHeadDim + kHeadDimV) / 8, kSummed = kProducts / 50;
  __device__ static constexpr bool tensor_core_sums(int row_tile, int key_block) {
    return (row_tile * kKeys / 16 + key_block) * kSummed % kBlocks < kSummed;
  }

  // DIFF V2, where V is as wide as Q, has one K for both maps.
  __device__ static bool shares_k(int64_t noise_bytes) {
    return kHeadDimV == kHeadDim && noise_bytes == 0;
  }
};

// Where each map's own result is stored of capped scores, no register is left for tanh at (64, 128) unless parts are
// halved.
template <class Separate>
struct CappedSeparate : Capped<Separate> {
  static constexpr int kPartKeys = Separate::kHeadDim == 64 ? 16 : Separate::kPartKeys;
};

template <class T>
__device__ const typename T::Element* at(const View& v, int64_t offset) {
  return static_cast<const typename T::Element*>(v.data) + offset;
}

// Starts the copies of both components of a CTA's queries.
template <class T>
__device__ void fill_queries(const FwdParams& p, const Sequence& sequence, int head, int cta_row,
                             char* tile) {
  const View& q = p.maps[kSignal].q;
  const int64_t offset = sequence.q_offset(q) + head * q.head + cta_row * q.row;
  const TileFill<typename T::QTile, T::kHeadDim, T::kThreads> fill(
      at<T>(q, offset), q.row, sequence.seqlen_q, int(p.shape.headdim), threadIdx.x);
  fill.start(tile, cta_row);
  fill.start(tile + T::QTile::offset(0, T::kHeadDim), cta_row, bytes_to_noise(q, p.maps[kNoise].q));
  cute::cp_async_fence();
}

// The keys and values of a head, step after step.
template <class T>
class KeyValueFill {
 public:
  __device__ KeyValueFill(const FwdParams& p, const Sequence& sequence, int head_k, int first_key)
      : noise_bytes_(bytes_to_noise(p.maps[kSignal].k, p.maps[kNoise].k)),
        k_(at<T>(p.maps[kSignal].k, offset(p.maps[kSignal].k, sequence, head_k, first_key)),
           p.maps[kSignal].k.row, sequence.seqlen_k, int(p.shape.headdim), threadIdx.x),
        v_(at<T>(p.v, offset(p.v, sequence, head_k, first_key)), p.v.row, sequence.seqlen_k,
           int(p.shape.headdim_v), threadIdx.x) {}

  // Starts the copies of the next step, whose first key is first_key.
  __device__ void start(char* stage, int first_key) {
    k_.start(stage, first_key);
    if (!T::shares_k(noise_bytes_))
      k_.start(stage + T::KTile::offset(0, T::kHeadDim), first_key, noise_bytes_);
    v_.start(stage + T::KTile::kBytes, first_key);
    k_.advance();
    v_.advance();
    cute::cp_async_fence();
  }

  // Leaves out some keys before the next step.
  __device__ void skip(int keys) {
    k_.skip(keys);
    v_.skip(keys);
  }

 private:
  __device__ static int64_t offset(const View& v, const Sequence& sequence, int head_k,
                                   int first_key) {
    return sequence.k_offset(v) + head_k * v.head + first_key * v.row;
  }

  int64_t noise_bytes_;  // from the signal's keys
  TileFill<typename T::KTile, T::kHeadDim, T::kThreads> k_;
  TileFill<typename T::VTile, T::kHeadDimV, T::kThreads> v_;
};

// Q of this warp's map, for the whole pass.
template <class T>
__device__ void load_queries(uint32_t (&q)[T::kRowTiles][T::kHeadDim / 16][4], const char* tile,
                             const Place<T>& place) {
  const char* const rows =
      tile + T::QTile::offset(place.pair * T::kRowTiles * 16, place.map * T::kHeadDim) +
      rows_first<typename T::QTile>(place.lane);
#pragma unroll
  for (int m = 0; m < T::kRowTiles; ++m)
#pragma unroll
    for (int depth = 0; depth < T::kHeadDim / 16; ++depth)
      load_matrices(q[m][depth], rows + T::QTile::offset(16 * m, 16 * depth));
}

}  // namespace diffattn::cuda::sm80
