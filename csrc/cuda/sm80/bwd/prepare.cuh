// What the main kernel needs of each row: u, D1 and D2, the LSE with rstd folded in; and what needs no keys: the
// gradients of lambda and of the norm weight.
//
// With the norm, g = dY·weight·scale, u = g - mean(g·x)·x with x = O·rstd, and dO = rstd·u; without
// it u = dY·scale and rstd is 1. The main kernel sees rstd in the exponent: P' = P·rstd.
//   dS1 = P1·(dO·V - D1 + dLSE1)            = P1'·(u·V - D1')
//   dS2 = P2·(-lambda·(dO·V - D2) + dLSE2)  = P2'·(-lambda·(u·V - D1') + E2')
#pragma once
#include "../../common/lanes.cuh"
#include "rows.cuh"
#include "traits.cuh"

namespace diffattn::cuda::sm80 {

constexpr int kPrepareThreads = 128;

// The constant of a row's exponents: -LSE in log2 units, with rstd. From 2^20 on the steps of fp32 are so coarse
// that P could be many times 1. There it is lowered by 6·2^-24 of itself. This is more than the roundings between
// it and a score can have added, so P stays at most 1.
__device__ inline float exponent_constant(float lse, float log2_rstd) {
  const float x = fmaf(-lse, float(M_LOG2E), log2_rstd);
  return fabsf(x) < 1 << 20 ? x : fmaf(fabsf(x), -0x1.8p-22f, x);
}

template <class Element>
__device__ void unpack_chunk(const uint4& chunk, float (&x)[kChunk]) {
  const uint32_t pairs[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = Half<Element>::unpack(pairs[i]);
    x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
  }
}

// One thread's share of a block of rows of one head: one chunk of columns of every kStride-th row.
template <class T>
class RowPreparation {
  using Element = typename T::Element;
  static constexpr int kLanes = T::kRowLanes;
  static constexpr int kStride = kPrepareThreads / kLanes;

 public:
  __device__ RowPreparation(const BwdParams& params, const BwdWorkspace& work, const RowBlock& tile)
      : p_(params),
        sequence_(tile.sequence),
        head_(tile.head),
        first_row_(tile.first_row),
        col_(threadIdx.x % kLanes * kChunk),
        dv_(int(params.shape.headdim_v)),
        normed_(params.norm.eps >= 0),
        scale_(float(params.norm.scale)),
        rows_(work.rows + tile.block * T::kRowsBytes) {
    const auto* weight = static_cast<const float*>(params.norm.weight);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      weight_sum[i] = 0;
      weight_[i] = weight && col_ < dv_ ? weight[col_ + i] : 1.f;
    }
  }

  float weight_sum[kChunk];  // this thread's part of the norm weight's gradient

  __device__ void run() {
    for (int r = threadIdx.x / kLanes; r < kRowBlock; r += kStride) prepare(r, first_row_ + r);
  }

 private:
  __device__ bool leads() const { return threadIdx.x % kLanes == 0; }

  __device__ int64_t offset(const View& v, int row) const {
    return sequence_.q_offset(v) + head_ * v.head + row * v.row;
  }

  __device__ float number(const View& v, int row) const {
    return static_cast<const float*>(v.data)[offset(v, row)];
  }

  // Of both maps.
  __device__ float2 numbers(const View& signal, const View& noise, int row) const {
    const char* const at = static_cast<const char*>(signal.data) + offset(signal, row) * 4;
    return {*reinterpret_cast<const float*>(at),
            *reinterpret_cast<const float*>(at + bytes_to_noise(signal, noise))};
  }

  __device__ void load(const View& v, int row, float (&x)[kChunk]) const {
    uint4 chunk{0, 0, 0, 0};
    if (row < sequence_.seqlen_q && col_ < dv_) {
      const auto* from = static_cast<const Element*>(v.data) + offset(v, row) + col_;
      chunk = *reinterpret_cast<const uint4*>(from);
    }
    unpack_chunk<Element>(chunk, x);
  }

  // Rounds u, so that everything that follows agrees with what the tensor cores see. It is laid out as the main
  // kernel's tile, with zeros in the columns that only the tile has.
  __device__ void store_u(int r, float (&u)[kChunk]) const {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = Half<Element>::pack(u[2 * i], u[2 * i + 1]);
    const uint4 chunk{pairs[0], pairs[1], pairs[2], pairs[3]};
    unpack_chunk<Element>(chunk, u);
    if (col_ >= T::kHeadDimV) return;
    char* const to = rows_ + kConstantsBytes + T::UTile::offset(r, col_);
    *reinterpret_cast<uint4*>(to) = chunk;
  }

  // L1, L2, D1' and E2' of the file's first comment.
  __device__ void store_constants(int r, float l1, float l2, float d1, float e2,
                                  float lambda) const {
    RowConstants& constants = reinterpret_cast<RowConstants*>(rows_)[r / 16];
    const int half = r / 8 % 2, g = r % 8;
    constants.of_row[half][g] = {l1, l2, e2, -lambda};
    reinterpret_cast<float2*>(&constants.minus_d1[g])[half] = {-d1, -d1};
  }

  // A row behind the sequence's last consists of zeros, and its P = exp2(-inf) = 0.
  __device__ void prepare(int r, int row) {
    const bool is_there = row < sequence_.seqlen_q;
    float u[kChunk], o[kChunk], o2[kChunk];
    load(p_.dout, row, u);
    load(p_.o, row, o);
    load(p_.o_complement, row, o2);
    const float rstd = normed_ && is_there ? number(p_.rstd, row) : 1.f;
    const float lambda = is_there ? number(p_.lam, row) : 0.f;
    if (normed_)
      take_back_norm(u, o, rstd);
    else
      take_back_scale(u, o);
    turn_back(o, o2, lambda);

    float lam_sum = 0, d = 0, d2 = 0;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) lam_sum = fmaf(u[i], o2[i], lam_sum);
    store_u(r, u);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      d = fmaf(u[i], o[i], d);
      d2 = fmaf(u[i], o2[i], d2);
    }
    lam_sum = sum_over<kLanes>(lam_sum);
    d = sum_over<kLanes>(d);
    d2 = sum_over<kLanes>(d2);
    if (!leads()) return;
    if (!is_there) {
      store_constants(r, -INFINITY, -INFINITY, 0, 0, 0);
      return;
    }

    static_cast<float*>(p_.dlam.data)[offset(p_.dlam, row)] = -rstd * lam_sum;
    const float2 lse = numbers(p_.maps[kSignal].lse, p_.maps[kNoise].lse, row);
    float2 dlse{0, 0};
    if (p_.map_grads[kSignal].dlse.data) {
      dlse = numbers(p_.map_grads[kSignal].dlse, p_.map_grads[kNoise].dlse, row);
      dlse = {dlse.x / rstd, dlse.y / rstd};
    }
    if (lse.x == -INFINITY) {  // the row saw no key
      store_constants(r, -INFINITY, -INFINITY, 0, 0, lambda);
      return;
    }
    const float log2_rstd = __log2f(rstd);
    const float d1 = fmaf(lambda, d2, d) - dlse.x, e2 = fmaf(lambda, d2 - d1, dlse.y);
    store_constants(r, exponent_constant(lse.x, log2_rstd), exponent_constant(lse.y, log2_rstd), d1,
                    e2, lambda);
  }

  // Without a norm, forward left O·scale.
  __device__ void take_back_scale(float (&u)[kChunk], float (&o)[kChunk]) const {
    const float inverse = scale_ == 0 ? 0.f : 1 / scale_;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) u[i] *= scale_, o[i] *= inverse;
  }

  // From O = O1 - lambda·O2 and O2 + lambda·O1 to O and O2. If forward saved O2 itself, the rounding errors of
  // both would add up in O1 = O + lambda·O2.
  __device__ static void turn_back(const float (&o)[kChunk], float (&o2)[kChunk], float lambda) {
    const float inverse = 1 / fmaf(lambda, lambda, 1.f);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) o2[i] = fmaf(-lambda, o[i], o2[i]) * inverse;
  }

  // dY becomes u; o is the output before the norm. Adds to the gradient of the weight.
  __device__ void take_back_norm(float (&u)[kChunk], const float (&o)[kChunk], float rstd) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const float x = o[i] * rstd;
      u[i] *= scale_;
      weight_sum[i] = fmaf(u[i], x, weight_sum[i]);
      u[i] *= weight_[i];
      sum = fmaf(u[i], x, sum);
    }
    const float mean = sum_over<kLanes>(sum) / float(dv_);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) u[i] = fmaf(-mean, o[i] * rstd, u[i]);
  }

  const BwdParams& p_;
  const Sequence& sequence_;
  int head_, first_row_, col_, dv_;
  bool normed_;
  float scale_, weight_[kChunk];
  char* rows_;  // the block's
};

// The norm weight's gradient of a block: the threads' parts, added in a fixed order.
template <class T>
__device__ void store_weight_part(const float (&sum)[kChunk], float* part, int dv) {
  constexpr int kLanes = T::kRowLanes, kGroups = kPrepareThreads / kLanes;
  __shared__ float sums[kGroups][kLanes * kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i)
    sums[threadIdx.x / kLanes][threadIdx.x % kLanes * kChunk + i] = sum[i];
  __syncthreads();  // all threads' parts are there
#pragma unroll
  for (int first = 0; first < kLanes * kChunk; first += kPrepareThreads) {
    const int col = first + threadIdx.x;
    if (col >= dv) continue;
    float total = 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) total += sums[group][col];
    part[col] = total;
  }
}

// A CTA has a block of rows of one head.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(const __grid_constant__ BwdParams params,
                   const __grid_constant__ BwdWorkspace work) {
  const Shape& shape = params.shape;
  const RowBlock tile(params);
  if (tile.first_row >= tile.sequence.seqlen_q) return;
  RowPreparation<T> rows(params, work, tile);
  rows.run();
  if (params.dnorm_weight)
    store_weight_part<T>(rows.weight_sum, work.weight_parts + tile.block * shape.headdim_v,
                         int(shape.headdim_v));
  constexpr int kDqChunks = kRowBlock * 2 * T::kHeadDim / 4;
  float4* const dq = reinterpret_cast<float4*>(work.dq) + tile.block * kDqChunks;
#pragma unroll
  for (int i = threadIdx.x; i < kDqChunks; i += kPrepareThreads) dq[i] = {0, 0, 0, 0};
}

}  // namespace diffattn::cuda::sm80
