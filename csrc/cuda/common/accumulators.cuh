// Rows of accumulator fragments: scaled, and written to an output.
#pragma once
#include "mma.cuh"

namespace diffattn::cuda {

template <int kRowTiles, int kColTiles>
__device__ void scale(float (&o)[kRowTiles][kColTiles][4], float factor) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < kColTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][n][i] *= factor;
}

template <int kRowTiles, int kColTiles>
__device__ void scale_rows(float (&o)[kRowTiles][kColTiles][4],
                           const float (&factor)[kRowTiles][2]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < kColTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[m][n][i] *= factor[m][i / 2];
}

// Writes one warp's rows of an output, kCols columns from first_col on, through its own part of
// shared memory, so that global memory sees whole 16-byte chunks of a row. Stored: 16 bits, or float, of which
// the staging tile holds half the columns at a time.
template <class Stored, class Tile, int kRowTiles, int kColTiles>
__device__ void store_rows(const float (&o)[kRowTiles][kColTiles][4], char* staging, const View& to,
                           int64_t offset, int first_row, int end_row, int first_col, int end_col,
                           int lane) {
  static_assert(Tile::kRows == kRowTiles * 16 && Tile::kCols == kColTiles * 8);
  constexpr int kPasses = sizeof(Stored) / 2, kTiles = kColTiles / kPasses;
  static_assert(kColTiles % kPasses == 0);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int pass_col = first_col + pass * kTiles * 8;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at =
              Tile::offset(m * 16 + half * 8 + lane / 4, (n * 8 + lane % 4 * 2) * kPasses);
          const float (&x)[4] = o[m][pass * kTiles + n];
          if constexpr (kPasses == 1)
            *reinterpret_cast<uint32_t*>(staging + at) =
                Half<Stored>::pack(x[2 * half], x[2 * half + 1]);
          else
            *reinterpret_cast<float2*>(staging + at) = {x[2 * half], x[2 * half + 1]};
        }
    __syncwarp();  // each lane reads chunks that its neighbours wrote
#pragma unroll
    for (int i = lane; i < Tile::kRows * kColTiles; i += 32) {
      const int row = i / kColTiles, chunk = i % kColTiles, col = chunk * kChunk / kPasses;
      if (first_row + row >= end_row || pass_col + col >= end_col) continue;
      auto* target =
          static_cast<Stored*>(to.data) + offset + (first_row + row) * to.row + pass_col + col;
      *reinterpret_cast<uint4*>(target) =
          *reinterpret_cast<const uint4*>(staging + Tile::offset(row, chunk * kChunk));
    }
    __syncwarp();  // the next output overwrites the staging tile
  }
}

}  // namespace diffattn::cuda
