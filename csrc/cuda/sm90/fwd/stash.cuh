// Where a warp keeps O2 while it computes O1.
#pragma once
#include "traits.cuh"

namespace diffattn::cuda::sm90 {

template <class T>
using OFragment = float[1][T::kHeadDimV / 8][4];
template <class T>
using OChunk = float[1][T::kChunkTiles][4];

// Chunks of 64 columns. Each lane has its own slots, so nothing has to be synchronised as long as chunks stay here.
template <class T>
class Stash {
 public:
  __device__ Stash(char* smem, int warp, int lane)
      : warp_(smem + T::kStash + warp * T::kStashBytes), lane_(lane) {}

  __device__ void put(const OFragment<T>& o) const {
#pragma unroll
    for (int n = 0; n < T::kHeadDimV / 8; ++n)
      *slot(n / T::kChunkTiles, n % T::kChunkTiles) = {o[0][n][0], o[0][n][1], o[0][n][2],
                                                       o[0][n][3]};
  }

  __device__ void get(int chunk, OChunk<T>& o) const {
#pragma unroll
    for (int n = 0; n < T::kChunkTiles; ++n) {
      const float4 x = *slot(chunk, n);
      o[0][n][0] = x.x;
      o[0][n][1] = x.y;
      o[0][n][2] = x.z;
      o[0][n][3] = x.w;
    }
  }

  // The chunk's bytes, for other use once all lanes have got what was there.
  __device__ char* room(int chunk) const { return warp_ + chunk * T::kChunkBytes; }

 private:
  __device__ float4* slot(int chunk, int tile) const {
    return reinterpret_cast<float4*>(room(chunk)) + tile * 32 + lane_;
  }

  char* warp_;
  int lane_;
};

}  // namespace diffattn::cuda::sm90
