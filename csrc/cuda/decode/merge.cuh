// From the accumulators of O1 and O2 to what a CTA stores.
//
// A warp has eight packed rows. O1 of a row lies in the upper half of its accumulator tiles and O2 in
// the lower, so that both parts of an element belong to one thread.
#pragma once
#include "logits.cuh"

namespace diffattn::cuda::decoding {

// What the softmax knows about a lane's row of each component, [comp], over all lanes of the row.
struct RowTotals {
  float reference[2], sum[2], rounded_sum[2];
};

// Merges the groups of warps, which saw different keys for the same rows. Each group ends with the sum
// over all groups for its share of the columns, so that all of them work to the end. Uses kBytes of
// shared memory, which must be free.
template <class T>
class GroupMerge {
  static constexpr int kColTiles = T::kHeadDimV / 8, kShare = kColTiles / T::kGroups;
  static_assert(kColTiles % T::kGroups == 0);
  static constexpr int kStatistics = T::kGroups * T::kRowWarps * 16;

 public:
  using O = float[1][kColTiles][4];
  using Share = float[1][kShare][4];
  static constexpr int kBytes =
      kStatistics * 16 + (T::kGroups - 1) * T::kRowWarps * kColTiles * 32 * 16;

  __device__ GroupMerge(char* smem, const Role& role)
      : rows_(reinterpret_cast<float*>(smem) + role.row_warp * 16 + role.lane / 4),
        o_(reinterpret_cast<float4*>(smem + kStatistics * 16) + role.row_warp * kShare * 32 +
           role.lane),
        group_(role.group),
        writes_(role.lane % 4 == 0) {}

  // Returns the totals of all groups; o is used up.
  __device__ RowTotals run(const Softmax<1>& softmax, const RegisterOrigins& origins, O& o,
                           Share& share) const {
    const float levels[2] = {softmax.level(0, 0, origins), softmax.level(0, 1, origins)};
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      const float sum = softmax.exact_sum(0, comp), rounded = softmax.rounded_sum(0, comp);
      if (!writes_) continue;
      float* const mine = row(group_, comp);
      mine[0] = levels[comp];
      mine[kStatistics] = sum;
      mine[2 * kStatistics] = rounded;
    }
    __syncthreads();  // references and sums of all groups are there
    RowTotals all;
    float factor[1][2];
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      float highest = levels[comp];
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
      factor[0][comp] = exp2f(levels[comp] - highest);
    }
    scale_rows(o, factor);
    for_shares(o, [&](int owner, int n, const float (&x)[4]) {
      if (owner == group_)
        for (int i = 0; i < 4; ++i) share[0][n][i] = x[i];
      else
        *part(owner, group_ - (group_ > owner), n) = {x[0], x[1], x[2], x[3]};
    });
    __syncthreads();  // what other groups have of this one's share is there
#pragma unroll
    for (int other = 0; other < T::kGroups - 1; ++other)
#pragma unroll
      for (int n = 0; n < kShare; ++n) {
        const float4 theirs = *part(group_, other, n);
        share[0][n][0] += theirs.x;
        share[0][n][1] += theirs.y;
        share[0][n][2] += theirs.z;
        share[0][n][3] += theirs.w;
      }
    return all;
  }

  // The sum over the groups of a number that each quad has for its row, after run().
  __device__ float sum_over_groups(float x) const {
    if (writes_) *row(group_, 0) = x;
    __syncthreads();  // the numbers of all groups are there
    float sum = 0;
#pragma unroll
    for (int g = 0; g < T::kGroups; ++g) sum += *row(g, 0);
    return sum;
  }

 private:
  __device__ float* row(int group, int comp) const {
    return rows_ + group * T::kRowWarps * 16 + comp * 8;
  }
  // Of an owner's share, what one of the others has.
  __device__ float4* part(int owner, int other, int n) const {
    return o_ + ((owner * (T::kGroups - 1) + other) * T::kRowWarps * kShare + n) * 32;
  }

  template <class F>
  __device__ static void for_shares(const O& o, const F& f) {
#pragma unroll
    for (int owner = 0; owner < T::kGroups; ++owner)
#pragma unroll
      for (int n = 0; n < kShare; ++n) f(owner, n, o[0][owner * kShare + n]);
  }

  float* rows_;  // [reference, sum, rounded sum, group, row warp, comp, row]
  float4* o_;    // [owner, other, row warp, column tile of the share, lane]
  int group_;
  bool writes_;  // one lane of each quad
};

// The place of a row among those of [batch, head, row].
__device__ inline int64_t row_index(const DecodePlan& plan, int64_t batch, int head, int row) {
  return (batch * plan.nheads.divisor + head) * plan.seqlen_q.divisor + row;
}

// Tells the combine kernel how many splits of a CTA's rows there are to merge.
__device__ inline void store_counts(const DecodePlan& plan, const SplitPlace& place,
                                    const PackedRows& rows, int count) {
  const int m = rows.begin + threadIdx.x;
  if (m >= rows.end) return;
  const int head = rows.head_of(m, place.head_k);
  plan.counts[row_index(plan, place.batch, head, rows.row_of(m))] = count;
}

// Stores a warp's rows for a share of the columns: partial results where keys are split, else the
// output itself.
template <class T>
class DecodeEpilogue {
  using Element = typename T::Element;
  using O = typename GroupMerge<T>::Share;
  static constexpr int kColTiles = sizeof(O) / sizeof(float[4]);

 public:
  __device__ DecodeEpilogue(const DecodeParams& params, const DecodePlan& plan,
                            const SplitPlace& place, const PackedRows& rows, const Role& role,
                            const GroupMerge<T>& merge)
      : p_(params),
        plan_(plan),
        merge_(merge),
        batch_(place.batch),
        split_(place.split),
        row_(rows.row_of(rows.begin + role.row())),
        head_(rows.head_of(rows.begin + role.row(), place.head_k)),
        first_col_(role.group * kColTiles * 8 + role.lane % 4 * 2),
        exists_(rows.begin + role.row() < rows.count),
        tells_lse_(role.group == 0 && role.lane % 4 == 0) {}

  __device__ void run(const RowTotals& totals, O& o) const {
    // A row without keys has O = 0 and an LSE of -inf, the logarithm of 0. Else the sums are at least
    // 2^-8 (the reference's headroom) and at most 2 per key: the fast functions are made for those.
    float lse[2], inverse[1][2];  // lse in log2 units
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      inverse[0][comp] = totals.sum[comp] == 0 ? 0.f : __fdividef(1, totals.rounded_sum[comp]);
      lse[comp] = totals.reference[comp] + __log2f(totals.sum[comp]);
    }
    scale_rows(o, inverse);
    if (plan_.most_splits > 1)
      store_partial(o, lse, totals);
    else if (p_.maps[kSignal].o.data)
      store_components(o, lse);
    else
      store_output(o, lse);
  }

 private:
  __device__ void store_partial(const O& o, const float (&lse)[2], const RowTotals& totals) const {
    if (!exists_) return;
    const int dv = int(p_.shape.headdim_v);
    const int64_t at = (row_index(plan_, batch_, head_, row_) * plan_.most_splits + split_) * 2;
    if (tells_lse_) {
      *reinterpret_cast<float2*>(plan_.lse + at) = {lse[0], lse[1]};
#pragma unroll
      for (int comp = 0; comp < 2; ++comp)
        if (is_coarse(lse[comp]))
          plan_.rest[at + comp] = __log2f(totals.sum[comp]) - (lse[comp] - totals.reference[comp]);
    }
    float* const out = plan_.out + at * dv;
    for_columns([&](int n, int col) {
#pragma unroll
      for (int comp = 0; comp < 2; ++comp)
        *reinterpret_cast<float2*>(out + comp * dv + col) = {o[0][n][2 * comp],
                                                             o[0][n][2 * comp + 1]};
    });
  }

  __device__ int64_t offset(const View& v) const {
    return batch_ * v.batch + row_ * v.row + head_ * v.head;
  }

  __device__ void store_lse(const float (&lse)[2]) const {
    if (!tells_lse_) return;
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      const View& to = p_.maps[comp].lse;
      static_cast<float*>(to.data)[offset(to)] = lse[comp] * float(M_LN2);
    }
  }

  __device__ void store_components(const O& o, const float (&lse)[2]) const {
    if (!exists_) return;
    store_lse(lse);
#pragma unroll
    for (int comp = 0; comp < 2; ++comp) {
      float* const out = static_cast<float*>(p_.maps[comp].o.data) + offset(p_.maps[comp].o);
      for_columns([&](int n, int col) {
        *reinterpret_cast<float2*>(out + col) = {o[0][n][2 * comp], o[0][n][2 * comp + 1]};
      });
    }
  }

  // O1 - lambda·O2 in fp32, normed and scaled, and both LSE.
  __device__ void store_output(const O& o, const float (&lse)[2]) const {
    const float lambda = exists_ ? static_cast<const float*>(p_.lam.data)[offset(p_.lam)] : 0.f;
    float2 y[kColTiles];
    float squares = 0;
#pragma unroll
    for (int n = 0; n < kColTiles; ++n) {
      y[n] = {fmaf(-lambda, o[0][n][2], o[0][n][0]), fmaf(-lambda, o[0][n][3], o[0][n][1])};
      squares = fmaf(y[n].x, y[n].x, fmaf(y[n].y, y[n].y, squares));
    }
    const bool normed = p_.norm.eps >= 0;
    float factor = float(p_.norm.scale);
    if (normed) {
      const float mean = merge_.sum_over_groups(quad_sum(squares)) / float(p_.shape.headdim_v);
      factor *= rsqrtf(mean + float(p_.norm.eps));
    }
    if (!exists_) return;
    store_lse(lse);
    const auto* weight = static_cast<const float*>(normed ? p_.norm.weight : nullptr);
    auto* const out = static_cast<Element*>(p_.out.data) + offset(p_.out);
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
      const int col = first_col_ + n * 8;
      if (col < p_.shape.headdim_v) f(n, col);
    }
  }

  const DecodeParams& p_;
  const DecodePlan& plan_;
  const GroupMerge<T>& merge_;
  int64_t batch_;
  int split_;
  int row_, head_;  // of this lane's row
  int first_col_;
  bool exists_;  // this lane's row
  bool tells_lse_;
};

}  // namespace diffattn::cuda::decoding
