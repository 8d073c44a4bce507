// The tensor core's operands: ldmatrix, mma.m16n8k16, and the 16-bit types they take.
//
// In what follows lane = 4g + t. An accumulator fragment holds (row g, columns 2t, 2t+1) and
// (row g + 8, the same columns) of a 16 x 8 tile.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "tile.cuh"

namespace diffattn::cuda {

template <class Element>
struct Half;

template <>
struct Half<__nv_bfloat16> {
  using Mma = cute::SM80_16x8x16_F32BF16BF16F32_TN;
  static constexpr float kHeadroom = 8;           // see softmax.cuh
  static constexpr uint32_t kOnes = 0x3f803f80u;  // a pair of 1

  __device__ static uint32_t pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  __device__ static float2 unpack(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }
};

template <>
struct Half<__half> {
  using Mma = cute::SM80_16x8x16_F32F16F16F32_TN;
  static constexpr float kHeadroom = 3;  // more would push small P into subnormal numbers
  static constexpr uint32_t kOnes = 0x3c003c00u;

  __device__ static uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  __device__ static float2 unpack(uint32_t pair) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  }
};

// c += a·b
template <class Element>
__device__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Half<Element>::Mma::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2],
                          c[3]);
}

__device__ inline void load_matrices(uint32_t (&r)[4], const char* smem) {
  cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(smem), r[0], r[1], r[2],
                                r[3]);
}

__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const char* smem) {
  cute::SM75_U16x8_LDSM_T::copy(*reinterpret_cast<const cute::uint128_t*>(smem), r[0], r[1], r[2],
                                r[3]);
}

// Which 16-byte row a lane names for an ldmatrix of a block of 16 rows x 16 columns, as an offset
// from the block's start. The order of the four matrices is such that what an mma takes lies in
// consecutive registers.
//
// Rows 0-7, rows 8-15 of the left chunk, then of the right: the operand A, or, transposed, two
// column tiles of the operand B.
template <class Tile>
__device__ int rows_first(int lane) {
  return Tile::offset(lane % 16, lane / 16 * kChunk);
}
// Left, right chunk of rows 0-7, then of rows 8-15: two column tiles of an operand B that is stored
// transposed.
template <class Tile>
__device__ int chunks_first(int lane) {
  return Tile::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2 * kChunk);
}

}  // namespace diffattn::cuda
