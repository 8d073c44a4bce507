// What a CTA does with one block of query rows: the maps and their gradients, and the products.
#pragma once
#include <climits>

#include "../../common/lanes.cuh"
#include "../../common/problem.cuh"
#include "../../common/softcap.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm80 {

// The parts of a block's keys, and which of them a step sees that sees some key of the block: the first
// until a step, the last from a step on. A warp works on keys of one part.
template <class T>
struct KeyParts {
  RowSteps mine;  // of this warp's part

  __device__ KeyParts(const KeyInterval& mask, int first_key, int warp)
      : mine(of(mask, first_key, warp / T::kPartWarps)),
        first_end_(keep_uniform(of(mask, first_key, 0).end)),
        mine_is_first_(warp < T::kPartWarps) {
    // Or it would be computed again in each step. At 96 no register is left to keep it.
    if (T::kHeadDim == 128) mine.full_begin = keep_uniform(mine.full_begin);
    const RowSteps last = of(mask, first_key, T::kParts - 1);
    last_begin_ = keep_uniform(last.begin < last.end ? last.begin : INT_MAX);
  }

  __device__ bool first_is_seen(int step) const { return T::kParts == 1 || step < first_end_; }
  __device__ bool last_is_seen(int step) const { return T::kParts == 1 || step >= last_begin_; }
  __device__ bool mine_is_seen(int step) const {
    return mine_is_first_ ? first_is_seen(step) : last_is_seen(step);
  }

 private:
  __device__ static RowSteps of(const KeyInterval& mask, int first_key, int part) {
    return RowSteps(mask, first_key + part * T::kPartKeys, T::kPartKeys, T::kRows);
  }

  int first_end_, last_begin_;
  bool mine_is_first_;
};

// V of a warp's 16 keys, as operand B of dP = u·Vᵀ.
template <class T>
using VFragment = uint32_t[T::kHeadDimV / 16][4];

template <class T>
using ScoreFragment = float[T::kRowTiles][2][4];  // rows g, g + 8 x keys 2t, 2t + 1 of 8

// The gradients of keys that a warp sums up: [dV or dK; or dV and dK, if K is shared].
template <class T>
using GradFragment = float[T::kJointK ? 2 : 1][T::kGradKeyTiles][T::kGradColTiles][4];

// The constants of a lane's rows of a step, g and g + 8 of each 16.
class LaneConstants {
 public:
  // Bytes from a step's constants to those of a lane's first rows.
  __device__ static int offset(int row_tile, int lane) {
    return row_tile * int(sizeof(RowConstants)) + lane / 4 * int(sizeof(float4));
  }
  __device__ explicit LaneConstants(const char* first)
      : first_(reinterpret_cast<const RowConstants*>(first)) {}

  __device__ const ScoreConstants& of_row(int row_tile, int half) const {
    return first_[row_tile].of_row[half][0];
  }
  __device__ const float4& minus_d1(int row_tile) const { return first_[row_tile].minus_d1[0]; }

 private:
  const RowConstants* first_;
};

// c += a·bᵀ for 16 keys; b is a fragment of both key tiles.
template <class T>
__device__ void multiply_keys(ScoreFragment<T>& c, const uint32_t (&a)[T::kRowTiles][4],
                              const uint32_t (&b)[4]) {
#pragma unroll
  for (int m = 0; m < T::kRowTiles; ++m) {
    mma<typename T::Element>(c[m][0], a[m], b[0], b[1]);
    mma<typename T::Element>(c[m][1], a[m], b[2], b[3]);
  }
}

// S1 and S2. q and k: this lane's row of the first block of the warp's rows and keys.
template <class T>
__device__ void multiply_scores(ScoreFragment<T> (&s)[2], const char* q, const char* k) {
#pragma unroll
  for (int depth = 0; depth < T::kHeadDim / 16; ++depth) {
    uint32_t b[T::kComponentsK][4];  // [component][key tile, half of the depth]
#pragma unroll
    for (int comp = 0; comp < T::kComponentsK; ++comp)
      load_matrices(b[comp], k + comp * T::KTile::kBytes + T::KTile::blocks(0, depth));
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      uint32_t a[T::kRowTiles][4];  // 16 rows x 16 of the depth
#pragma unroll
      for (int m = 0; m < T::kRowTiles; ++m)
        load_matrices(a[m], q + comp * T::QTile::kBytes + T::QTile::blocks(m, depth));
      multiply_keys<T>(s[comp], a, b[comp % T::kComponentsK]);
    }
  }
}

// dP - D1.
template <class T>
__device__ void multiply_dp(ScoreFragment<T>& dp, const char* u, const VFragment<T>& v,
                            const LaneConstants& constants) {
#pragma unroll
  for (int m = 0; m < T::kRowTiles; ++m) {
    const float4& from = constants.minus_d1(m);
    // To load all four costs two wavefronts; to load two and copy them costs instructions. The wider shapes, of
    // one row tile, are near their limit of instructions, the others near that of wavefronts.
    const float4 start = T::kRowTiles == 1 ? from : float4{from.x, from.x, from.z, from.z};
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      dp[m][n][0] = start.x;
      dp[m][n][1] = start.y;
      dp[m][n][2] = start.z;
      dp[m][n][3] = start.w;
    }
  }
#pragma unroll
  for (int depth = 0; depth < T::kHeadDimV / 16; ++depth) {
    uint32_t a[T::kRowTiles][4];  // 16 rows x 16 of the depth
#pragma unroll
    for (int m = 0; m < T::kRowTiles; ++m) load_matrices(a[m], u + T::UTile::blocks(m, depth));
    multiply_keys<T>(dp, a, v[depth]);
  }
}

// A = P1 - lambda·P2, dS1 and dS2 of a warp's rows and keys, rounded, to shared memory.
template <class T>
class MapWriter {
  using Element = typename T::Element;
  using MapTile = typename T::MapTile;

 public:
  __device__ MapWriter(char* maps, int first_row, int first_key, int lane, const BwdParams& params)
      : maps_(maps + keep_uniform(MapTile::blocks(first_row / 16, first_key / 16))),
        first_row_(first_row),
        first_key_(first_key),
        lane_(lane),
        target_(keep(MapTile::offset(lane / 4, lane % 4 * 2))),
        factor_(T::kCapped ? cap_factor(params.softmax_scale, params.softcap) : 1.f),
        log2_scale_(float(T::kCapped ? params.softcap : params.softmax_scale) * float(M_LOG2E)) {}

  // dp is less D1. All of the warp's rows see all of its keys if the step is full.
  __device__ void run(const ScoreFragment<T> (&s)[2], const ScoreFragment<T>& dp,
                      const LaneConstants& constants, const KeyInterval& mask, bool full,
                      int step_row, int block_key) const {
    if (full)
      write<false>(s, dp, constants, mask, step_row, block_key);
    else
      write<true>(s, dp, constants, mask, step_row, block_key);
  }

 private:
  // Keys are counted from key 0 of the sequence where there is a mask.
  template <bool kMasked>
  __device__ void write(const ScoreFragment<T> (&s)[2], const ScoreFragment<T>& dp,
                        const LaneConstants& constants, const KeyInterval& mask, int step_row,
                        int block_key) const {
#pragma unroll
    for (int m = 0; m < T::kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = m * 16 + half * 8, row = first_row_ + r + lane_ / 4;
        const ScoreConstants c = constants.of_row(m, half);
        const int begin = kMasked ? mask.begin(step_row + row) - block_key - first_key_ : 0;
        const int end = kMasked ? mask.end(step_row + row) - block_key - first_key_ : 0;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float a[2], ds1[2], ds2[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int key = n * 8 + lane_ % 4 * 2 + i, at = half * 2 + i;
            const Tanh s1 = score(s[0][m][n][at]), s2 = score(s[1][m][n][at]);
            float p1 = exp2f(fmaf(s1.value, log2_scale_, c.l1));
            float p2 = exp2f(fmaf(s2.value, log2_scale_, c.l2));
            if (kMasked && (key < begin || key >= end)) p1 = p2 = 0;
            a[i] = fmaf(c.minus_lambda, p2, p1);
            ds1[i] = p1 * dp[m][n][at];
            ds2[i] = p2 * fmaf(c.minus_lambda, dp[m][n][at], c.e2);
            if (T::kCapped) {
              ds1[i] *= s1.slope;
              ds2[i] *= s2.slope;
            }
          }
          store(0, r, n, a);
          store(1, r, n, ds1);
          store(2, r, n, ds2);
        }
      }
  }

  // What log2_scale_ makes a logit of.
  __device__ Tanh score(float product) const {
    return T::kCapped ? tanh_of(product * factor_) : Tanh{product, 1.f};
  }

  __device__ void store(int map, int r, int n, const float (&x)[2]) const {
    char* const to = maps_ + (target_ ^ n * 16) + map * MapTile::kBytes + r * MapTile::kRowBytes;
    *reinterpret_cast<uint32_t*>(to) = Half<Element>::pack(x[0], x[1]);
  }

  char* maps_;
  int first_row_, first_key_, lane_;
  int target_;  // this lane's word of the first row; in the other key tile, it is in the other chunk
  float factor_;  // of a product, before a cap
  float log2_scale_;
};

// grad += mapᵀ·rows: this warp's keys of a map, and its columns of u or of Q. Both pointers: this
// lane's row of the first block.
template <class T, class Acc>
__device__ void accumulate_keys(Acc& grad, const char* map, const char* rows) {
#pragma unroll
  for (int depth = 0; depth < T::kRows / 16; ++depth) {
    uint32_t a[T::kGradKeyTiles][4];  // 16 keys x 16 rows
#pragma unroll
    for (int m = 0; m < T::kGradKeyTiles; ++m)
      load_matrices_transposed(a[m], map + T::MapTile::blocks(depth, m));
#pragma unroll
    for (int col = 0; col < T::kGradColTiles / 2; ++col) {
      uint32_t b[4];  // [column tile, half of the rows]
      load_matrices_transposed(b, rows + T::UTile::blocks(depth, col));
#pragma unroll
      for (int m = 0; m < T::kGradKeyTiles; ++m) {
        mma<typename T::Element>(grad[m][2 * col], a[m], b[0], b[1]);
        mma<typename T::Element>(grad[m][2 * col + 1], a[m], b[2], b[3]);
      }
    }
  }
}

}  // namespace diffattn::cuda::sm80
