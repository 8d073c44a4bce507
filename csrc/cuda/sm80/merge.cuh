// From accumulators of O1 and O2 to what a CTA of decoding stores.
//
// A warp has eight packed rows: O1 of a row lies in the upper half of its accumulator tiles, O2 in the
// lower, so that both parts of an element belong to one thread.
#pragma once
#include "epilogue.cuh"
#include "splits.cuh"

namespace diffattn::cuda::sm80 {

// What the softmax knows of a lane's row of each component, [comp], for whole rows.
struct RowTotals {
  float reference[2], sum[2], rounded_sum[2];
};

// Merges the groups of warps, which saw different keys of the same rows, into the first group.
// Uses kBytes of shared memory that nobody uses any more.
template <class T>
class GroupMerge {
  static constexpr int kColTiles = T::kHeadDimV / 8;
  using O = float[1][kColTiles][4];

  static constexpr int kStatistics = T::kGroups * T::kRowWarps * 16;

 public:
  static constexpr int kBytes =
      kStatistics * 16 + (T::kGroups - 1) * T::kRowWarps * kColTiles * 32 * 16;

  __device__ GroupMerge(char* smem, int group, int row_warp, int lane)
      : rows_(reinterpret_cast<float*>(smem) + row_warp * 16 + lane / 4),
        o_(reinterpret_cast<float4*>(smem + kStatistics * 16) + row_warp * kColTiles * 32 + lane),
        group_(group),
        writes_(lane % 4 == 0) {}

  // Returns the totals of all groups; o of the first group becomes O of all.
  __device__ RowTotals run(const Softmax<1>& softmax, O& o) const {
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      const float sum = softmax.exact_sum(0, comp);
      if (!writes_) continue;
      float* const mine = row(group_, comp);
      mine[0] = softmax.reference[0][comp];
      mine[kStatistics] = sum;
      mine[2 * kStatistics] = softmax.rounded_sum(0, comp);
    }
    __syncthreads();  // references and sums of all groups are there
    RowTotals all;
    float factor[1][2];
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      float highest = softmax.reference[0][comp];
#pragma unroll
      for (int g = 0; g < T::kGroups; ++g) highest = fmaxf(highest, *row(g, comp));
      all.reference[comp] = highest;
      all.sum[comp] = all.rounded_sum[comp] = 0;
#pragma unroll
      for (int g = 0; g < T::kGroups; ++g) {
        const float* const theirs = row(g, comp);
        const float weight = exp2f(theirs[0] - highest);
        all.sum[comp] = fmaf(weight, theirs[kStatistics], all.sum[comp]);
        all.rounded_sum[comp] = fmaf(weight, theirs[2 * kStatistics], all.rounded_sum[comp]);
      }
      factor[0][comp] = exp2f(softmax.reference[0][comp] - highest);
    }
    scale_rows(o, factor);
    if (group_ > 0)
#pragma unroll
      for (int n = 0; n < kColTiles; ++n)
        *part(group_, n) = {o[0][n][0], o[0][n][1], o[0][n][2], o[0][n][3]};
    __syncthreads();  // O of the other groups is there
    if (group_ == 0)
      for (int g = 1; g < T::kGroups; ++g)
#pragma unroll
        for (int n = 0; n < kColTiles; ++n) {
          const float4 theirs = *part(g, n);
          o[0][n][0] += theirs.x, o[0][n][1] += theirs.y;
          o[0][n][2] += theirs.z, o[0][n][3] += theirs.w;
        }
    return all;
  }

 private:
  __device__ float* row(int group, int comp) const {
    return rows_ + group * T::kRowWarps * 16 + comp * 8;
  }
  __device__ float4* part(int group, int n) const {
    return o_ + ((group - 1) * T::kRowWarps * kColTiles + n) * 32;
  }

  float* rows_;  // [reference, sum, rounded sum, group, row warp, comp, row]
  float4* o_;    // [group - 1, row warp, column tile, lane]
  int group_;
  bool writes_;  // one lane of each quad
};

// The place of a row among those of [batch, head, row].
__device__ inline int64_t row_index(const Shape& shape, int64_t batch, int head, int row) {
  return (batch * shape.nheads + head) * shape.seqlen_q + row;
}

// Tells the combine kernel how many splits there are to merge of a CTA's rows.
__device__ inline void store_counts(const DecodePlan& plan, const Shape& shape,
                                    const PackedRows& rows, int64_t batch, int head_k, int count) {
  const int m = rows.begin + threadIdx.x;
  if (m >= rows.end) return;
  plan.counts[row_index(shape, batch, rows.head_of(m, head_k), rows.row_of(m))] = count;
}

// Stores the rows of one warp: partial results where keys are split, else the output itself.
template <class T>
class DecodeEpilogue {
  using Element = typename T::Element;
  static constexpr int kColTiles = T::kHeadDimV / 8;
  using O = float[1][kColTiles][4];

 public:
  __device__ DecodeEpilogue(const DecodeParams& params, const DecodePlan& plan, int64_t batch,
                            int head_k, const PackedRows& rows, int first_row, int split, int lane)
      : p_(params),
        plan_(plan),
        batch_(batch),
        row_(rows.row_of(first_row + lane / 4)),
        head_(rows.head_of(first_row + lane / 4, head_k)),
        exists_(first_row + lane / 4 < rows.count),
        split_(split),
        lane_(lane) {}

  __device__ void run(const RowTotals& totals, O& o) const {
    float lse[2], inverse[1][2];  // lse in log2 units
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      const float sum = totals.sum[comp];
      inverse[0][comp] = sum == 0 ? 0.f : 1 / totals.rounded_sum[comp];
      lse[comp] = sum == 0 ? -INFINITY : totals.reference[comp] + log2f(sum);
    }
    scale_rows(o, inverse);
    plan_.splits > 1 ? store_partial(o, lse) : store_output(o, lse);
  }

 private:
  __device__ void store_partial(const O& o, const float (&lse)[2]) const {
    if (!exists_) return;
    const Shape& shape = p_.shape;
    const int64_t row = row_index(shape, batch_, head_, row_);
    const int64_t at = (row * plan_.splits + split_) * 2;
    if (lane_ % 4 == 0) *reinterpret_cast<float2*>(plan_.lse + at) = {lse[0], lse[1]};
    float* const out = plan_.out + at * shape.headdim_v;
    for_columns([&](int n, int col) {
#pragma unroll
      for (int comp = 0; comp < 2; ++comp)
        *reinterpret_cast<float2*>(out + comp * shape.headdim_v + col) = {o[0][n][2 * comp],
                                                                          o[0][n][2 * comp + 1]};
    });
  }

  // O1 - lambda·O2 in fp32, normed and scaled, and both LSE.
  __device__ void store_output(const O& o, const float (&lse)[2]) const {
    const auto at = [&](const View& v) { return batch_ * v.batch + row_ * v.row + head_ * v.head; };
    const float lambda = exists_ ? static_cast<const float*>(p_.lam.data)[at(p_.lam)] : 0.f;
    float2 y[kColTiles];
    float squares = 0;
#pragma unroll
    for (int n = 0; n < kColTiles; ++n) {
      y[n] = {fmaf(-lambda, o[0][n][2], o[0][n][0]), fmaf(-lambda, o[0][n][3], o[0][n][1])};
      squares = fmaf(y[n].x, y[n].x, fmaf(y[n].y, y[n].y, squares));
    }
    const float mean = quad_sum(squares) / float(p_.shape.headdim_v);
    const bool normed = p_.norm.eps >= 0;
    const float rstd = normed ? rsqrtf(mean + float(p_.norm.eps)) : 1.f;
    if (!exists_) return;
    if (lane_ % 4 == 0)
#pragma unroll
      for (int comp = 0; comp < 2; ++comp)
        static_cast<float*>(p_.lse.data)[at(p_.lse) + comp * p_.lse.comp] =
            lse[comp] * float(M_LN2);
    const auto* weight = static_cast<const float*>(normed ? p_.norm.weight : nullptr);
    const float factor = rstd * float(p_.norm.scale);
    auto* const out = static_cast<Element*>(p_.out.data) + at(p_.out);
    for_columns([&](int n, int col) {
      const float low = y[n].x * factor * (weight ? weight[col] : 1.f);
      const float high = y[n].y * factor * (weight ? weight[col + 1] : 1.f);
      *reinterpret_cast<uint32_t*>(out + col) = Half<Element>::pack(low, high);
    });
  }

  template <class F>
  __device__ void for_columns(const F& f) const {
#pragma unroll
    for (int n = 0; n < kColTiles; ++n) {
      const int col = n * 8 + lane_ % 4 * 2;
      if (col < p_.shape.headdim_v) f(n, col);
    }
  }

  const DecodeParams& p_;
  const DecodePlan& plan_;
  int64_t batch_;
  int row_, head_;  // of this lane's row
  bool exists_;
  int split_, lane_;
};

}  // namespace diffattn::cuda::sm80
