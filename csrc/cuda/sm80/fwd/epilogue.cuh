// From accumulators of O1 and O2 to what is stored.
#pragma once
#include "../shared/accumulators.cuh"
#include "../shared/softmax.cuh"
#include "handover.cuh"

namespace diffattn::cuda::sm80 {

// What one warp does with its half of the columns of O1 and O2.
template <class T>
class Epilogue {
  using Element = typename T::Element;
  static constexpr int kRowTiles = T::kRowTiles, kColTiles = T::kHalfV / 8;
  using O = float[kRowTiles][kColTiles][4];
  using Rows = float[kRowTiles][2];

 public:
  __device__ Epilogue(const FwdParams& params, const Sequence& sequence, int head, int first_row,
                      int lane, int comp, const RowExchange<kRowTiles>& exchange, char* staging)
      : p_(params),
        sequence_(sequence),
        head_(head),
        first_row_(first_row),
        lane_(lane),
        comp_(comp),
        exchange_(exchange),
        staging_(staging) {}

  // o_own is the sum of this warp's component, o_other its partner's; both are used up.
  template <class Origins, class Wait>
  __device__ void run(const Softmax<kRowTiles>& softmax, const Origins& origins, O& o_own,
                      O& o_other, const Wait& wait) {
    normalise(softmax, origins, o_own, o_other, wait);
    if (comp_ == 1) swap(o_own, o_other);
    O &o = o_own, &o2 = o_other;  // O1 and O2, then O and O2 + lambda·O1
    rotate(o, o2);
    if (p_.o_complement.data) store(o2, p_.o_complement);
    if (p_.norm.eps >= 0) {
      if (p_.o.data) store(o, p_.o);
      normalise_rms(o, wait);
    } else {
      multiply_columns(o, nullptr);
    }
    store(o, p_.out);
  }

 private:
  // f(row tile, half, row of the sequence) for the rows of this lane.
  template <class F>
  __device__ void for_rows(const F& f) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) f(m, half, first_row_ + m * 16 + half * 8 + lane_ / 4);
  }

  // A row's own value of a [batch, head, row] tensor, written by one lane of the quad.
  __device__ void store_statistic(const View& to, int row, float x) const {
    if (lane_ % 4 != 0 || row >= sequence_.seqlen_q) return;
    static_cast<float*>(to.data)[sequence_.q_offset(to) + head_ * to.head + row * to.row] = x;
  }

  __device__ void store(const O& o, const View& to) const {
    store_rows<Element, typename T::OTile>(
        o, staging_, to, sequence_.q_offset(to) + head_ * to.head, first_row_, sequence_.seqlen_q,
        comp_ * T::kHalfV, int(p_.shape.headdim_v), lane_);
  }

  // Divides by the normalisers, and writes this component's LSE. A row that saw no key gets O = 0.
  template <class Origins, class Wait>
  __device__ void normalise(const Softmax<kRowTiles>& softmax, const Origins& origins, O& o_own,
                            O& o_other, const Wait& wait) const {
    const View& lse = p_.maps[comp_].lse;
    Rows inverse;
    for_rows([&](int m, int half, int row) {
      const float sum = softmax.exact_sum(m, half), rounded = softmax.rounded_sum(m, half);
      inverse[m][half] = sum == 0 ? 0.f : 1 / rounded;
      const float log2_sum =  // no subnormal sums
          sum == 0 ? -INFINITY : softmax.log2_sum_of(m, half, __log2f(sum), origins);
      store_statistic(lse, row, log2_sum * float(M_LN2));
    });
    scale_rows(o_own, inverse);
    exchange_.put(inverse);
    wait();  // both have written their normalisers
    exchange_.get(inverse);
    scale_rows(o_other, inverse);
    wait();  // both have read them; the norm writes there again
  }

  __device__ static void swap(O& a, O& b) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float x = a[m][n][i];
          a[m][n][i] = b[m][n][i];
          b[m][n][i] = x;
        }
  }

  // O = O1 - lambda·O2, in fp32, and what backward needs beside it. The two are O1 and O2 rotated, so
  // what their rounding costs is spread evenly over both, whatever lambda is.
  __device__ void rotate(O& o, O& o2) const {
    const auto* lam =
        static_cast<const float*>(p_.lam.data) + sequence_.q_offset(p_.lam) + head_ * p_.lam.head;
    for_rows([&](int m, int half, int row) {
      const float lambda = row < sequence_.seqlen_q ? lam[row * p_.lam.row] : 0.f;
#pragma unroll
      for (int n = 0; n < kColTiles; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const float o1 = o[m][n][i];
          o[m][n][i] = fmaf(-lambda, o2[m][n][i], o1);
          o2[m][n][i] = fmaf(lambda, o1, o2[m][n][i]);
        }
    });
  }

  // Y = O·rstd·weight·scale. The mean runs over all columns, so over both warps of the pair.
  template <class Wait>
  __device__ void normalise_rms(O& o, const Wait& wait) const {
    Rows squares;
    for_rows([&](int m, int half, int) {
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kColTiles; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) sum = fmaf(o[m][n][i], o[m][n][i], sum);
      squares[m][half] = quad_sum(sum);
    });
    exchange_.put(squares);
    wait();  // both have written their half of the squares
    Rows rstd;
    exchange_.get(rstd);
    for_rows([&](int m, int half, int row) {
      const float mean = (squares[m][half] + rstd[m][half]) / float(p_.shape.headdim_v);
      rstd[m][half] = rsqrtf(mean + float(p_.norm.eps));
      if (p_.rstd.data && comp_ == 0) store_statistic(p_.rstd, row, rstd[m][half]);
    });
    scale_rows(o, rstd);
    multiply_columns(o, static_cast<const float*>(p_.norm.weight));
  }

  __device__ void multiply_columns(O& o, const float* weight) const {
    const int first_col = comp_ * T::kHalfV + lane_ % 4 * 2;
#pragma unroll
    for (int n = 0; n < kColTiles; ++n) {
      float factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int col = first_col + n * 8 + i;
        const bool weighted = weight && col < p_.shape.headdim_v;
        factor[i] = float(p_.norm.scale) * (weighted ? weight[col] : 1.f);
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][n][i] *= factor[i % 2];
    }
  }

  const FwdParams& p_;
  const Sequence& sequence_;
  int head_, first_row_, lane_, comp_;
  RowExchange<kRowTiles> exchange_;
  char* staging_;
};

}  // namespace diffattn::cuda::sm80
