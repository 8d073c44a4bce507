// The forward's two products, of fragments in registers with tiles in shared memory.
#pragma once
#include "../../common/mma.cuh"

namespace diffattn::cuda::sm80 {

// S = Q·Kᵀ of one component, the keys of a part.
template <class T>
__device__ void multiply_qk(float (&s)[T::kRowTiles][T::kPartKeys / 8][4],
                            const uint32_t (&q)[T::kRowTiles][T::kHeadDim / 16][4], const char* k) {
#pragma unroll
  for (int m = 0; m < T::kRowTiles; ++m)
#pragma unroll
    for (int n = 0; n < T::kPartKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = 0;
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth)
#pragma unroll
    for (int block = 0; block < T::kPartKeys / 16; ++block) {
      uint32_t b[4];  // [key tile, half of the depth]
      load_matrices(b, k + T::KTile::offset(16 * block, 16 * depth));
#pragma unroll
      for (int m = 0; m < T::kRowTiles; ++m) {
        mma<typename T::Element>(s[m][2 * block], q[m][depth], b[0], b[1]);
        mma<typename T::Element>(s[m][2 * block + 1], q[m][depth], b[2], b[3]);
      }
    }
}

// O_own += P_own·V and O_other += P_other·V, this warp's half of V's columns, the keys of a part.
template <class T, class O, class P>
__device__ void multiply_pv(O& o_own, O& o_other, const P& p_own, const P& p_other, const char* v) {
#pragma unroll
  for (int block = 0; block < T::kPartKeys / 16; ++block)
#pragma unroll
    for (int col = 0; col < T::kHalfV / 16; ++col) {
      uint32_t b[4];  // [column tile, half of the keys]
      load_matrices_transposed(b, v + T::VTile::offset(16 * block, 16 * col));
#pragma unroll
      for (int m = 0; m < T::kRowTiles; ++m) {
        mma<typename T::Element>(o_own[m][2 * col], p_own[m][block], b[0], b[1]);
        mma<typename T::Element>(o_own[m][2 * col + 1], p_own[m][block], b[2], b[3]);
        mma<typename T::Element>(o_other[m][2 * col], p_other[m][block], b[0], b[1]);
        mma<typename T::Element>(o_other[m][2 * col + 1], p_other[m][block], b[2], b[3]);
      }
    }
}

}  // namespace diffattn::cuda::sm80
