// What the two warps of a pair hand to each other through shared memory.
#pragma once
#include <cstdint>

#include "barrier.cuh"

namespace diffattn::cuda::sm80 {

// Row statistics that the two warps of a pair hand to each other through shared memory.
template <int kRowTiles>
struct RowExchange {
  float* mine;          // [kRowTiles * 16]
  const float* theirs;  // [kRowTiles * 16]
  int lane;

  // All lanes of a quad have, and get, the same values.
  __device__ void put(const float (&x)[kRowTiles][2]) const {
    if (lane % 4 != 0) return;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) mine[m * 16 + half * 8 + lane / 4] = x[m][half];
  }

  __device__ void get(float (&x)[kRowTiles][2]) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) x[m][half] = theirs[m * 16 + half * 8 + lane / 4];
  }
};

// In a step: P, and by how much the references of its rows were raised.
template <class T>
struct Handover {
  static constexpr int kVectors = T::kRowTiles * T::kKeys / 16;
  using P = uint32_t[T::kRowTiles][T::kKeys / 16][4];

  uint4* p_mine;  // [kVectors, lane]   fragments as they are: both warps hold them alike
  const uint4* p_theirs;
  int* grew_mine;  // whether a maximum of this step grew, and the factors are to be used
  const int* grew_theirs;
  RowExchange<T::kRowTiles> rows;
  int pair;

  __device__ Handover(char* shared, int warp, int lane)
      : p_mine(reinterpret_cast<uint4*>(shared + warp * T::kPBytes) + lane),
        p_theirs(reinterpret_cast<uint4*>(shared + (warp ^ 1) * T::kPBytes) + lane),
        grew_mine(reinterpret_cast<int*>(shared + T::kGrown) + warp),
        grew_theirs(reinterpret_cast<int*>(shared + T::kGrown) + (warp ^ 1)),
        rows{reinterpret_cast<float*>(shared + T::kStatistics) + warp * T::kRowTiles * 16,
             reinterpret_cast<float*>(shared + T::kStatistics) + (warp ^ 1) * T::kRowTiles * 16,
             lane},
        pair(warp / 2) {}

  __device__ void put_growth(bool grew) const { *grew_mine = grew; }  // all lanes write the same
  __device__ void put(const P& p) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) p_mine[i * 32] = reinterpret_cast<const uint4*>(p)[i];
  }
  __device__ void get(P& p) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(p)[i] = p_theirs[i * 32];
  }
  __device__ void wait() const { named_barrier(1 + pair, 64); }
};

}  // namespace diffattn::cuda::sm80
