// What the two warps of a pair hand to each other through shared memory.
#pragma once
#include <cstdint>

#include "../../common/barrier.cuh"

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

// The origins of a lane's far rows (Softmax), in shared memory: no register is left, and hardly any row is far.
// No other lane reads them.
template <class T>
struct SharedOrigins {
  float* first;  // [kRowTiles, half, thread]

  __device__ explicit SharedOrigins(char* smem)
      : first(reinterpret_cast<float*>(smem + T::kOrigins) + threadIdx.x) {}
  __device__ float& operator()(int m, int half) const {
    return first[(m * 2 + half) * T::kThreads];
  }
};

// In a part of a step: P, and by how much the references of its rows were raised.
template <class T>
struct Handover {
  static constexpr int kVectors = T::kRowTiles * T::kPartKeys / 16;
  using P = uint32_t[T::kRowTiles][T::kPartKeys / 16][4];

  uint4* p_mine;  // [kVectors, lane]   fragments as they are: both warps hold them alike
  const uint4* p_theirs;
  RowExchange<T::kRowTiles> rows;
  int pair;

  __device__ Handover(char* smem, int warp, int lane)
      : p_mine(reinterpret_cast<uint4*>(smem + 2 * T::kStageBytes + warp * T::kPBytes) + lane),
        p_theirs(reinterpret_cast<uint4*>(smem + 2 * T::kStageBytes + (warp ^ 1) * T::kPBytes) +
                 lane),
        rows{statistics(smem, warp), statistics(smem, warp ^ 1), lane},
        pair(warp / 2) {}

  __device__ void put(const P& p) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) p_mine[i * 32] = reinterpret_cast<const uint4*>(p)[i];
  }
  __device__ void get(P& p) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4*>(p)[i] = p_theirs[i * 32];
  }
  __device__ void wait() const { named_barrier(1 + pair, 64); }
  // The same, and whether the partner raised references: each tells the other by the barrier's count.
  __device__ bool wait_for_growth(bool grew_mine) const {
    return named_barrier_count(1 + pair, 64, grew_mine) > (grew_mine ? 32 : 0);
  }

 private:
  __device__ static float* statistics(char* smem, int warp) {
    return reinterpret_cast<float*>(smem + T::kStatistics + warp * T::kStatisticsBytes);
  }
};

}  // namespace diffattn::cuda::sm80
