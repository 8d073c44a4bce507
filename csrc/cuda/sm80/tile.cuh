// Tiles of 16-bit elements in shared memory: their layout, and how a thread fills them.
#pragma once
#include <cute/arch/copy_sm80.hpp>

#include "../../diffattn.h"

namespace diffattn::cuda::sm80 {

constexpr int kChunk = 8;  // columns in the 16 bytes that cp.async, ldmatrix and wide stores move

// kRows x kCols, cut into panels of kPanel columns. The chunks of a panel are permuted by row, so
// that one chunk column of eight neighbouring rows lies in eight different groups of banks.
template <int kRows_, int kCols_, int kPanel_>
struct Tile {
  static constexpr int kRows = kRows_, kCols = kCols_, kPanel = kPanel_;
  static constexpr int kChunks = kPanel / kChunk;  // in a row of a panel
  static constexpr int kPanels = kCols / kPanel;
  static constexpr int kRowBytes = kPanel * 2;
  static constexpr int kPanelBytes = kRows * kRowBytes;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static_assert(kCols % kPanel == 0 && (kChunks == 8 || kChunks == 4 || kChunks == 2));
  static_assert(kPanelBytes % 128 == 0);  // all panels begin at the same bank

  // Byte offset of a chunk of the first panel.
  __device__ static int offset(int row, int chunk) {
    const int permutation = row / (8 / kChunks) % kChunks;
    return row * kRowBytes + (chunk ^ permutation) * 16;
  }

  // Bytes from a block of 16 x 16 to the one so many blocks below and to the right, for any row
  // of it. In a panel that is wider the permutation would stand in the way.
  __device__ static constexpr int blocks(int below, int right) {
    static_assert(kPanel == 16);
    return right * kPanelBytes + below * 16 * kRowBytes;
  }
};

// The widest panel that divides kCols.
template <int kCols>
constexpr int panel_of() {
  return kCols % 64 == 0 ? 64 : kCols % 32 == 0 ? 32 : 16;
}

// One thread's share of filling a tile from rows of global memory. Rows from rows_left on and
// columns from cols on become zeros; nothing of them is read. Eight neighbouring threads fill one
// or more rows of a panel, that is different banks, and the next eight the same rows of the next
// panel, so that a row's 128 bytes are read together.
template <class Tile, int kThreads>
class TileFill {
  static constexpr int kPanelChunks = Tile::kRows * Tile::kChunks;
  static constexpr int kGroupRows = 8 / Tile::kChunks;
  static constexpr int kPanelsAtOnce =
      kPanelChunks * kGroupRows < kThreads ? kThreads / kPanelChunks : kGroupRows;
  static constexpr int kRowsAtOnce = kThreads / kPanelsAtOnce / Tile::kChunks;
  static_assert(kThreads % Tile::kChunks == 0 && Tile::kRows % kRowsAtOnce == 0);

 public:
  __device__ TileFill(const void* rows, int64_t row_stride, int cols, int thread)
      : row_stride_(row_stride * 2) {
    panel_ = thread / 8 % kPanelsAtOnce;
    row_ = thread / (8 * kPanelsAtOnce) * kGroupRows + thread / Tile::kChunks % kGroupRows;
    const int chunk = thread % Tile::kChunks;
    const int col = panel_ * Tile::kPanel + chunk * kChunk;
    source_ = static_cast<const char*>(rows) + row_ * row_stride_ + col * 2;
    target_ = panel_ * Tile::kPanelBytes + Tile::offset(row_, chunk);
    cols_ = cols - col;
  }

  // Starts the copies, from `offset` bytes behind where the rows were said to begin; they have
  // landed after the cp.async wait that follows.
  __device__ void start(char* tile, int rows_left, int64_t offset = 0) const {
    const char* const source = source_ + offset;
#pragma unroll
    for (int p = 0; p < Tile::kPanels; p += kPanelsAtOnce) {
      if (Tile::kPanels % kPanelsAtOnce != 0 && p + panel_ >= Tile::kPanels) continue;
#pragma unroll
      for (int r = 0; r < Tile::kRows; r += kRowsAtOnce) {
        const char* from = source + r * row_stride_ + p * Tile::kRowBytes;
        char* to = tile + target_ + r * Tile::kRowBytes + p * Tile::kPanelBytes;
        using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
        Copy::copy(*reinterpret_cast<const cute::uint128_t*>(from),
                   *reinterpret_cast<cute::uint128_t*>(to),
                   row_ + r < rows_left && p * Tile::kPanel < cols_);
      }
    }
  }

  __device__ void advance(int rows) { source_ += rows * row_stride_; }

 private:
  const char* source_;  // of the first chunk
  int64_t row_stride_;  // bytes
  int target_, panel_, row_;
  int cols_;  // how many there are from the first chunk on
};

}  // namespace diffattn::cuda::sm80
