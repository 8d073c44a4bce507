// Tiles without padding, in panels of 16 columns: the backward has no shared memory to spare.
#pragma once
#include "../../common/tile.cuh"

namespace diffattn::cuda::sm80 {

// kRows x kCols. In every other group of four rows of a panel the two chunks change places, so that one chunk
// column of eight neighbouring rows lies in eight different groups of banks. All blocks of 16 x 16 have the same
// layout, at constant offsets from each other.
template <int kRows_, int kCols_>
struct PanelTile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPanel = 16, kRowBytes = 2 * kPanel;
  static constexpr int kPanels = kCols / kPanel, kPanelBytes = kRows * kRowBytes;
  static constexpr int kBytes = kPanels * kPanelBytes;
  static_assert(kRows % 16 == 0 && kCols % kPanel == 0);

  __host__ __device__ static constexpr int offset(int row, int col) {
    const int chunk = col % kPanel / kChunk ^ row / 4 % 2;
    return col / kPanel * kPanelBytes + row * kRowBytes + chunk * 16 + col % kChunk * 2;
  }

  // Bytes from any place in a block to the same place in the block that lies so many blocks below and to the
  // right.
  __host__ __device__ static constexpr int blocks(int below, int right) {
    return right * kPanelBytes + below * 16 * kRowBytes;
  }
};

// One thread's share of filling a tile from rows of global memory. Rows from rows_left on and
// columns from cols on become zeros; nothing of them is read. Eight neighbouring threads fill four rows of a
// panel, so they write to different banks. A warp fills the same rows of four panels, so that it reads 128 bytes
// of a row together.
template <class Tile, int kThreads>
class PanelFill {
  static constexpr int kPanelsAtOnce = 4, kRowsAtOnce = kThreads / 8;
  static_assert(Tile::kRows % kRowsAtOnce == 0);

 public:
  __device__ PanelFill(const void* rows, int64_t row_stride, int cols, int thread)
      : row_bytes_(row_stride * 2),
        panel_(thread / 8 % kPanelsAtOnce),
        row_(thread / 32 * 4 + thread / 2 % 4) {
    const int col = panel_ * Tile::kPanel + thread % 2 * kChunk;
    source_ = static_cast<const char*>(rows) + row_ * row_bytes_ + col * 2;
    target_ = Tile::offset(row_, col);
    cols_ = cols - col;
  }

  // Starts the copies, from `shift` bytes behind the rows that the constructor was given. They have landed after
  // the cp.async wait that follows.
  __device__ void start(char* tile, int rows_left, int64_t shift = 0) const {
    const char* const source = source_ + shift;
#pragma unroll
    for (int p = 0; p < Tile::kPanels; p += kPanelsAtOnce) {
      if (p + kPanelsAtOnce > Tile::kPanels && p + panel_ >= Tile::kPanels) continue;
#pragma unroll
      for (int r = 0; r < Tile::kRows; r += kRowsAtOnce) {
        const char* from = source + r * row_bytes_ + p * Tile::kRowBytes;
        char* to = tile + target_ + r * Tile::kRowBytes + p * Tile::kPanelBytes;
        using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
        Copy::copy(*reinterpret_cast<const cute::uint128_t*>(from),
                   *reinterpret_cast<cute::uint128_t*>(to),
                   row_ + r < rows_left && p * Tile::kPanel < cols_);
      }
    }
  }

 private:
  const char* source_;  // of the first chunk
  int64_t row_bytes_;
  int target_, panel_, row_;
  int cols_;  // that exist from the first chunk on
};

}  // namespace diffattn::cuda::sm80
