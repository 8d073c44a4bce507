// What each warp has of a step's products: its rows, keys and columns, as places in shared memory.
#pragma once
#include "dq.cuh"
#include "place.cuh"
#include "step.cuh"

namespace diffattn::cuda::sm80 {

// Where this lane's row of an operand's first block lies, for a block at the start of a tile.
template <class T>
struct LaneRows {
  const char *rows, *chunks;  // see rows_first() and chunks_first()

  __device__ LaneRows(const char* smem, int lane)
      : rows(smem + keep(rows_first<typename T::MapTile>(lane))),
        chunks(smem + keep(chunks_first<typename T::MapTile>(lane))) {}
};

// S1, S2 and dP: a warp's rows of a step and its keys.
template <class T>
struct ScoreShare {
  int first_row_tile, first_key;
  int rows, keys;         // bytes to them in a tile of rows, and in K
  const char* constants;  // of this lane's first rows, in the first stage

  __device__ ScoreShare(const char* smem, const KeyPlace<T>& place)
      : first_row_tile(place.warp % T::kRowGroups * T::kRowTiles),
        first_key(key_of(place.warp)),
        rows(keep_uniform(T::UTile::blocks(first_row_tile, 0))),
        keys(keep_uniform(T::KTile::blocks(first_key / 16, 0))),
        constants(smem + T::kStages + keep(LaneConstants::offset(first_row_tile, place.lane))) {}

  __device__ static int key_of(int warp) { return warp / T::kRowGroups * 16; }
  __device__ const char* q(const LaneRows<T>& at, int stage) const {
    return at.rows + rows + T::kQ + stage;
  }
  __device__ const char* u(const LaneRows<T>& at, int stage) const {
    return at.rows + rows + T::kU + (T::kTwoStagesU ? stage : 0);
  }
  __device__ const char* k(const LaneRows<T>& at) const { return at.chunks + keys; }
};

// dV, dK1 and dK2: a warp's keys and columns in one of the three, or, if K is shared, in both dV and dK.
template <class T>
class GradShare {
 public:
  enum Of { kDv, kDk1, kDk2 };  // if K is shared, kDv stands for both
  int first_key, first_col;

  __device__ explicit GradShare(const KeyPlace<T>& place)
      : first_key(place.warp / T::kGradColGroups * T::kGradKeys),
        first_col(group(place.warp) * T::kGradCols),
        of_(gradient(place.warp)),
        map_(keep_uniform(T::kMaps + of_ * T::MapTile::kBytes +
                          T::MapTile::blocks(0, first_key / 16))),
        rows_(keep_uniform(multiplied() + T::UTile::blocks(0, first_col / 16))) {}

  // Found anew, because kept from before the steps it would spill at d = 96.
  __device__ static Of of(const KeyPlace<T>& place) { return gradient(keep_uniform(place.warp)); }

  // Adds a step's products.
  __device__ void accumulate(GradFragment<T>& grad, const LaneRows<T>& at, int stage) const {
    const char *const rows = at.rows + rows_, *const map = at.chunks + map_;
    if constexpr (T::kJointK) {
      accumulate_keys<T>(grad[0], map, rows + T::kU + (T::kTwoStagesU ? stage : 0));
      accumulate_keys<T>(grad[1], map + T::MapTile::kBytes, rows + T::kQ + stage);
      accumulate_keys<T>(grad[1], map + 2 * T::MapTile::kBytes,
                         rows + T::kQ + T::QTile::kBytes + stage);
    } else {
      accumulate_keys<T>(grad[0], map, rows + (T::kTwoStagesU || of_ != kDv ? stage : 0));
    }
  }

 private:
  __device__ static Of gradient(int warp) {
    if (T::kJointK) return kDv;
    return Of(max(warp % T::kGradColGroups / T::kQuarter - 1, 0));
  }
  // Of the column groups of that gradient.
  __device__ static int group(int warp) {
    const int all = warp % T::kGradColGroups;
    return T::kJointK || gradient(warp) == kDv ? all : all % T::kQuarter;
  }
  // Where the rows lie that the map is multiplied with: u, Q1 or Q2.
  __device__ int multiplied() const {
    if (T::kJointK) return 0;
    return of_ == kDv ? T::kU : T::kQ + (of_ - kDk1) * T::QTile::kBytes;
  }

  Of of_;
  int map_, rows_;
};

// dQ1 and dQ2: a warp's rows and columns, in one of the two.
template <class T>
class DqShare {
 public:
  __device__ explicit DqShare(const KeyPlace<T>& place)
      : ds_(keep_uniform(T::kMaps + (1 + map(place.warp)) * T::MapTile::kBytes +
                         T::MapTile::blocks(row_tile(place.warp), 0))),
        keys_(keep_uniform(map(place.warp) % T::kComponentsK * T::KTile::kBytes +
                           T::KTile::blocks(0, group(place.warp) % kGroups * T::kDqCols / 16))),
        to_(4 * keep(place.lane + DqLayout<T::kHeadDim>::tile(
                                      row_tile(place.warp), group(place.warp) * T::kDqCols / 8))) {}

  // product += dS·K over the parts of the keys that the step sees: the first, the last, or both.
  __device__ void multiply(DqFragment<T>& product, const LaneRows<T>& at, const KeyParts<T>& parts,
                           int step) const {
    constexpr int kBlocks = T::kPartKeys / 16;
    const char *const ds = at.rows + ds_, *const keys = at.rows + keys_;
    const bool sees_first = parts.first_is_seen(step), sees_last = parts.last_is_seen(step);
    const int from = sees_first ? 0 : kBlocks;
    multiply_dq<T>(product, ds + T::MapTile::blocks(0, from), keys + T::KTile::blocks(from, 0));
    if (T::kParts == 2 && sees_first && sees_last)
      multiply_dq<T>(product, ds + T::MapTile::blocks(0, kBlocks),
                     keys + T::KTile::blocks(kBlocks, 0));
  }

  // Where this lane adds to a block of rows in the workspace.
  __device__ float* sum_of(unsigned block, float* dq) const {
    char* const to = reinterpret_cast<char*>(dq) +
                     (uint64_t(block) * (DqLayout<T::kHeadDim>::kFloats * 4) + to_);
    return reinterpret_cast<float*>(to);
  }

 private:
  static constexpr int kGroups = T::kDqColGroups / 2;  // of each of the two
  __device__ static int group(int warp) { return warp % T::kDqColGroups; }
  __device__ static int map(int warp) { return group(warp) / kGroups; }
  __device__ static int row_tile(int warp) { return warp / T::kDqColGroups * T::kDqRowTiles; }

  int ds_, keys_;
  unsigned to_;
};

}  // namespace diffattn::cuda::sm80
