// Merges the splits of each row, component by component, and only then subtracts.
#pragma once
#include "softmax.cuh"
#include "splits.cuh"

namespace diffattn::cuda::sm80 {

constexpr int kCombineWarps = 4;  // each has one row of one head

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
  return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
  return x;
}

// One row's results, dv columns in chunks of four a lane: lane, lane + 32.
class CombinedRow {
 public:
  __device__ CombinedRow(const float* lse, const float* out, int count, int dv, int lane)
      : dv_(dv), lane_(lane) {
    const auto* lses = reinterpret_cast<const float2*>(lse);  // [split]
    float max[2] = {-INFINITY, -INFINITY};
    for (int n = lane; n < count; n += 32) {
      max[0] = fmaxf(max[0], lses[n].x);
      max[1] = fmaxf(max[1], lses[n].y);
    }
    max[0] = warp_max(max[0]);
    max[1] = warp_max(max[1]);
    float total[2] = {};
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      const float2 mine = lses[n];
      const float weight[2] = {weigh(mine.x, max[0]), weigh(mine.y, max[1])};
#pragma unroll
      for (int comp = 0; comp < 2; ++comp) {
        total[comp] += weight[comp];
        for_chunks([&](int chunk, int col) {
          const float4 part =
              *reinterpret_cast<const float4*>(out + (2 * n + comp) * int64_t(dv) + col);
          add(sum_[comp][chunk], weight[comp], part);
        });
      }
    }
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      const float inverse = total[comp] == 0 ? 0.f : 1 / total[comp];
      lse_[comp] = total[comp] == 0 ? -INFINITY : (max[comp] + log2f(total[comp])) * float(M_LN2);
      for_chunks([&](int chunk, int) {
        const float4 sum = sum_[comp][chunk];
        sum_[comp][chunk] = {};
        add(sum_[comp][chunk], inverse, sum);
      });
    }
  }

  __device__ float lse1() const { return lse_[0]; }
  __device__ float lse2() const { return lse_[1]; }

  // Y = (O1 - lambda·O2)·rstd·weight·scale
  template <class Element>
  __device__ void store(float lambda, const Norm& norm, Element* out) {
    float squares = 0;
    for_chunks([&](int chunk, int) {
      float4& o = sum_[0][chunk];
      add(o, -lambda, sum_[1][chunk]);
      squares += o.x * o.x + o.y * o.y + o.z * o.z + o.w * o.w;
    });
    const bool normed = norm.eps >= 0;
    const float mean = warp_sum(squares) / float(dv_);
    const float factor = (normed ? rsqrtf(mean + float(norm.eps)) : 1.f) * float(norm.scale);
    const auto* weight = static_cast<const float*>(normed ? norm.weight : nullptr);
    for_chunks([&](int chunk, int col) {
      const float4 w = weight
                           ? float4{weight[col], weight[col + 1], weight[col + 2], weight[col + 3]}
                           : float4{1, 1, 1, 1};
      const float4 o = sum_[0][chunk];
      *reinterpret_cast<uint2*>(out + col) = {
          Half<Element>::pack(o.x * factor * w.x, o.y * factor * w.y),
          Half<Element>::pack(o.z * factor * w.z, o.w * factor * w.w)};
    });
  }

 private:
  static constexpr int kChunks = 2 * kMaxHeadDim / 128;

  // A split that saw no key has -inf, and so has the maximum where none saw any.
  __device__ static float weigh(float lse, float max) {
    return lse == -INFINITY ? 0.f : exp2f(lse - max);
  }

  __device__ static void add(float4& sum, float factor, const float4& x) {
    sum.x = fmaf(factor, x.x, sum.x);
    sum.y = fmaf(factor, x.y, sum.y);
    sum.z = fmaf(factor, x.z, sum.z);
    sum.w = fmaf(factor, x.w, sum.w);
  }

  template <class F>
  __device__ void for_chunks(const F& f) const {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int col = (chunk * 32 + lane_) * 4;
      if (col < dv_) f(chunk, col);
    }
  }

  int dv_, lane_;
  float4 sum_[2][kChunks] = {};  // [comp, chunk]
  float lse_[2];
};

template <class Element>
__global__ void __launch_bounds__(32 * kCombineWarps)
    combine_kernel(const __grid_constant__ DecodeParams params,
                   const __grid_constant__ DecodePlan plan) {
  const Shape& shape = params.shape;
  const int lane = threadIdx.x % 32;
  const int64_t index = int64_t(blockIdx.x) * kCombineWarps + threadIdx.x / 32;
  if (index >= shape.batch * shape.nheads * shape.seqlen_q) return;
  const int row = int(index % shape.seqlen_q);
  const int head = int(index / shape.seqlen_q % shape.nheads);
  const int64_t batch = index / shape.seqlen_q / shape.nheads;

  // The splits that the CTAs of this row had.
  const CachedSequence sequence(params, batch);
  const int group = int(shape.nheads / shape.nheads_k);
  const PackedRows rows(shape, plan.rows, (row * group + head % group) / plan.rows);
  const Sight sight(params.window, int(shape.seqlen_q), sequence.keys, sequence.leftpad);
  const int count = Splits(plan, sight, rows).count();

  const int64_t at = index * plan.splits * 2;
  CombinedRow combined(plan.lse + at, plan.out + at * shape.headdim_v, count, int(shape.headdim_v),
                       lane);
  const auto offset = [&](const View& v) { return batch * v.batch + row * v.row + head * v.head; };
  if (lane < 2)
    static_cast<float*>(params.lse.data)[offset(params.lse) + lane * params.lse.comp] =
        lane == 0 ? combined.lse1() : combined.lse2();
  combined.store(static_cast<const float*>(params.lam.data)[offset(params.lam)], params.norm,
                 static_cast<Element*>(params.out.data) + offset(params.out));
}

}  // namespace diffattn::cuda::sm80
