// Where a warp keeps O2 while it computes O1.
#pragma once
#include "traits.cuh"

namespace diffattn::cuda::sm90 {

template <class T>
using OFragment = float[1][T::kHeadDimV / 8][4];
template <class T>
using OChunk = float[1][T::kChunkTiles][4];

// Four numbers of a tile, packed: in whole, or the upper 24 bits, rounded. A vector of each lane moves at a time.
template <int kBits>
struct Packed;

template <>
struct Packed<32> {
  static constexpr int kTiles = 1, kVectors = 1;  // tiles that fill whole vectors

  __device__ static void pack(const float (*x)[4], uint4* to) {
    to[0] = {__float_as_uint(x[0][0]), __float_as_uint(x[0][1]), __float_as_uint(x[0][2]),
             __float_as_uint(x[0][3])};
  }
  __device__ static void unpack(const uint4* from, float (*x)[4]) {
    const uint4 v = from[0];
    x[0][0] = __uint_as_float(v.x);
    x[0][1] = __uint_as_float(v.y);
    x[0][2] = __uint_as_float(v.z);
    x[0][3] = __uint_as_float(v.w);
  }
};

// Two vectors have the upper 16 bits of four tiles' numbers, a third the next 8.
template <>
struct Packed<24> {
  static constexpr int kTiles = 4, kVectors = 3;

  __device__ static void pack(const float (*x)[4], uint4* to) {
    uint32_t high[8], low[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      uint32_t bits[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) bits[i] = rounded(x[n][i]);
      high[2 * n] = __byte_perm(bits[0], bits[1], 0x7632);
      high[2 * n + 1] = __byte_perm(bits[2], bits[3], 0x7632);
      low[n] = __byte_perm(__byte_perm(bits[0], bits[1], 0x0051),
                           __byte_perm(bits[2], bits[3], 0x0051), 0x5410);
    }
    to[0] = {high[0], high[1], high[2], high[3]};
    to[1] = {high[4], high[5], high[6], high[7]};
    to[2] = {low[0], low[1], low[2], low[3]};
  }
  __device__ static void unpack(const uint4* from, float (*x)[4]) {
    const uint32_t high[8] = {from[0].x, from[0].y, from[0].z, from[0].w,
                              from[1].x, from[1].y, from[1].z, from[1].w};
    const uint32_t low[4] = {from[2].x, from[2].y, from[2].z, from[2].w};
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Two bytes of high, one of low, and below it one that is cleared.
        const uint32_t bytes = (i % 2 ? 0x3200 : 0x1000) + (4 + i) * 0x10;
        x[n][i] = __uint_as_float(__byte_perm(high[2 * n + i / 2], low[n], bytes) & 0xffffff00u);
      }
  }

 private:
  // A NaN would overflow.
  __device__ static uint32_t rounded(float x) {
    return x == x ? __float_as_uint(x) + 0x80 : __float_as_uint(x);
  }
};

// Chunks of 64 columns. Each lane has its own slots, so nothing has to be synchronised as long as chunks stay here.
template <class T>
class Stash {
  using Slots = Packed<T::kStashBits>;
  static constexpr int kVectors = T::kChunkTiles / Slots::kTiles * Slots::kVectors;  // of a lane
  static_assert(kVectors * 32 * 16 == T::kChunkBytes);

 public:
  __device__ Stash(char* smem, int warp, int lane)
      : warp_(smem + T::kStash + warp * T::kStashBytes), lane_(lane) {}

  __device__ void put(const OFragment<T>& o) const {
#pragma unroll
    for (int chunk = 0; chunk < T::kChunks; ++chunk) {
      uint4 packed[kVectors];
#pragma unroll
      for (int n = 0; n < T::kChunkTiles; n += Slots::kTiles)
        Slots::pack(&o[0][chunk * T::kChunkTiles + n],
                    packed + n / Slots::kTiles * Slots::kVectors);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) slots(chunk)[i * 32] = packed[i];
    }
  }

  __device__ void get(int chunk, OChunk<T>& o) const {
    uint4 packed[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) packed[i] = slots(chunk)[i * 32];
#pragma unroll
    for (int n = 0; n < T::kChunkTiles; n += Slots::kTiles)
      Slots::unpack(packed + n / Slots::kTiles * Slots::kVectors, &o[0][n]);
  }

  // The chunk's bytes, for other use once all lanes have got what was there.
  __device__ char* room(int chunk) const { return warp_ + chunk * T::kChunkBytes; }

 private:
  __device__ uint4* slots(int chunk) const { return reinterpret_cast<uint4*>(room(chunk)) + lane_; }

  char* warp_;
  int lane_;
};

}  // namespace diffattn::cuda::sm90
