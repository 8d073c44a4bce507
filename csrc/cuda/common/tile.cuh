// Tiles of 16-bit elements in shared memory: their layout, and how a thread fills them.
#pragma once
#include <cute/arch/copy_sm80.hpp>

#include "../../diffattn.h"

namespace diffattn::cuda {

constexpr int kChunk = 8;  // columns in the 16 bytes that cp.async, ldmatrix and wide stores move

// kRows x kCols. The pitch is an odd number of chunks, so that one chunk column of eight
// neighbouring rows lies in eight different groups of banks, at offsets that are linear.
template <int kRows_, int kCols_>
struct Tile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kPitch = kCols * 2 + 16;  // bytes
  static constexpr int kBytes = kRows * kPitch;
  static_assert(kCols % 16 == 0);

  __host__ __device__ static constexpr int offset(int row, int col) {
    return row * kPitch + col * 2;
  }
};

// One thread's share of filling kCols columns of a tile from rows of global memory; kThreads threads do it
// together. Rows and columns beyond those that exist become zeros; nothing is read there.
template <class Tile, int kCols, int kThreads>
class TileFill {
  // A quarter warp writes 128 bytes at a time: eight chunks of a row, or four of rows r and r + 4,
  // which an odd pitch puts 64 bytes apart.
  static constexpr int kWidth = kCols % 64 == 0 ? 8 : 4;
  static constexpr int kBlocks = kCols / kChunk / kWidth;
  static constexpr int kLines = kThreads / kWidth;
  static constexpr int kRowsAtOnce = kLines < Tile::kRows ? kLines : Tile::kRows;
  static constexpr int kBlocksAtOnce = kLines / kRowsAtOnce;
  static constexpr int kPasses = (kBlocks + kBlocksAtOnce - 1) / kBlocksAtOnce;
  static_assert(kCols % 32 == 0 && kThreads % 64 == 0);
  static_assert(Tile::kRows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);

 public:
  // rows and cols are how many there are.
  __device__ TileFill(const void* first_row, int64_t row_stride, int rows, int cols, int thread)
      : row_bytes_(row_stride * 2) {
    const int line = thread / kWidth, chunk = thread % kWidth;
    block_ = line / kRowsAtOnce;
    const int row = kWidth == 8 ? line % kRowsAtOnce : spread(line % kRowsAtOnce);
    const int col = (block_ * kWidth + chunk) * kChunk;
    source_ = static_cast<const char*>(first_row) + row * row_bytes_ + col * 2;
    target_ = Tile::offset(row, col);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int at = pass * kBlocksAtOnce * kWidth * kChunk;
      rows_[pass] = (col + at < cols ? rows : 0) - row;
    }
  }

  // Starts the copies of Tile::kRows rows, the first of which is `row`; a cp.async wait tells when they have
  // landed. They lie `shift` bytes from where advance() has got to.
  __device__ void start(char* tile, int row, int64_t shift = 0) const {
#pragma unroll
    for (int r = 0; r < Tile::kRows; r += kRowsAtOnce)
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int col = pass * kBlocksAtOnce * kWidth * kChunk;
        if (kBlocks % kBlocksAtOnce && pass * kBlocksAtOnce + block_ >= kBlocks) continue;
        using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
        Copy::copy(
            *reinterpret_cast<const cute::uint128_t*>(source_ + r * row_bytes_ + shift + col * 2),
            *reinterpret_cast<cute::uint128_t*>(tile + target_ + Tile::offset(r, col)),
            row + r < rows_[pass]);
      }
  }

  __device__ void advance() { skip(Tile::kRows); }
  __device__ void skip(int rows) { source_ += rows * row_bytes_; }

 private:
  // 0 4 1 5 2 6 3 7 of every eight
  __device__ static int spread(int line) { return line / 8 * 8 + line % 2 * 4 + line % 8 / 2; }

  const char* source_;  // of this thread's first chunk
  int64_t row_bytes_;
  int block_, target_;
  int rows_[kPasses];  // that exist in a pass' columns, less this thread's own first row
};

}  // namespace diffattn::cuda
