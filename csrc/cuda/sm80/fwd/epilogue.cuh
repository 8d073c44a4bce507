// From accumulators of O1 and O2 to what is stored.
#pragma once
#include "../../common/accumulators.cuh"
#include "../../common/softmax.cuh"
#include "handover.cuh"
#include "place.cuh"

namespace diffattn::cuda::sm80 {

// What one warp does with its half of the columns of O1 and O2.
template <class T>
class Epilogue {
  using Element = typename T::Element;
  static constexpr int kRowTiles = T::kRowTiles, kColTiles = T::kHalfV / 8;
  using O = float[kRowTiles][kColTiles][4];
  using Rows = float[kRowTiles][2];

 public:
  __device__ Epilogue(const FwdParams& params, const Place<T>& place, const Handover<T>& handover,
                      char* staging)
      : p_(params), place_(place), handover_(handover), staging_(staging) {}

  // o_own is the sum of this warp's map, o_other its partner's; both are used up.
  template <class Origins>
  __device__ void run(const Softmax<kRowTiles>& softmax, const Origins& origins, O& o_own,
                      O& o_other) {
    normalise(softmax, origins, o_own, o_other);
    if (place_.map == kNoise) swap(o_own, o_other);
    O &o1 = o_own, &o2 = o_other;
    if constexpr (T::kSeparate) {
      store<float>(o1, p_.maps[kSignal].o);
      store<float>(o2, p_.maps[kNoise].o);
    } else {
      subtract(o1, o2);
    }
  }

 private:
  __device__ void subtract(O& o, O& o2) const {
    rotate(o, o2);  // from O1 and O2 to O and O2 + lambda·O1
    if (p_.o_complement.data) store(o2, p_.o_complement);
    if (p_.norm.eps >= 0) {
      if (p_.o.data) store(o, p_.o);
      normalise_rms(o);
    } else {
      multiply_columns(o, nullptr);
    }
    store(o, p_.out);
  }

  // f(row tile, half, row of the sequence) for the rows of this lane.
  template <class F>
  __device__ void for_rows(const F& f) const {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        f(m, half, place_.first_row + m * 16 + half * 8 + place_.lane / 4);
  }

  // Writes a row's number of a [batch, head, row] tensor, by one lane of the quad.
  __device__ void store_statistic(const View& to, int row, float x) const {
    if (place_.lane % 4 != 0 || row >= place_.sequence.seqlen_q) return;
    static_cast<float*>(
        to.data)[place_.sequence.q_offset(to) + place_.head * to.head + row * to.row] = x;
  }

  template <class Stored = Element>
  __device__ void store(const O& o, const View& to) const {
    store_rows<Stored, typename T::OTile>(
        o, staging_, to, place_.sequence.q_offset(to) + place_.head * to.head, place_.first_row,
        place_.sequence.seqlen_q, place_.map * T::kHalfV, int(p_.shape.headdim_v), place_.lane);
  }

  // Divides by the normalisers, and writes this component's LSE. A row that saw no key gets O = 0.
  template <class Origins>
  __device__ void normalise(const Softmax<kRowTiles>& softmax, const Origins& origins, O& o_own,
                            O& o_other) const {
    const View& lse = p_.maps[place_.map].lse;
    Rows inverse;
    for_rows([&](int m, int half, int row) {
      const float sum = softmax.exact_sum(m, half), rounded = softmax.rounded_sum(m, half);
      inverse[m][half] = sum == 0 ? 0.f : 1 / rounded;
      const float log2_sum =  // no subnormal sums
          sum == 0 ? -INFINITY : softmax.log2_sum_of(m, half, __log2f(sum), origins);
      store_statistic(lse, row, log2_sum * float(M_LN2));
    });
    scale_rows(o_own, inverse);
    handover_.rows.put(inverse);
    handover_.wait();  // both have written their normalisers
    handover_.rows.get(inverse);
    scale_rows(o_other, inverse);
    handover_.wait();  // both have read them; the norm writes there again
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

  // O = O1 - lambda·O2 and O2 + lambda·O1, in fp32. The two are O1 and O2 rotated, so their rounding errors are
  // spread evenly over both, whatever lambda is.
  __device__ void rotate(O& o, O& o2) const {
    const auto* lam = static_cast<const float*>(p_.lam.data) + place_.sequence.q_offset(p_.lam) +
                      place_.head * p_.lam.head;
    for_rows([&](int m, int half, int row) {
      const float lambda = row < place_.sequence.seqlen_q ? lam[row * p_.lam.row] : 0.f;
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
  __device__ void normalise_rms(O& o) const {
    Rows squares;
    for_rows([&](int m, int half, int) {
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kColTiles; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) sum = fmaf(o[m][n][i], o[m][n][i], sum);
      squares[m][half] = quad_sum(sum);
    });
    handover_.rows.put(squares);
    handover_.wait();  // both have written their half of the squares
    Rows rstd;
    handover_.rows.get(rstd);
    for_rows([&](int m, int half, int row) {
      const float mean = (squares[m][half] + rstd[m][half]) / float(p_.shape.headdim_v);
      rstd[m][half] = rsqrtf(mean + float(p_.norm.eps));
      if (p_.rstd.data && place_.map == 0) store_statistic(p_.rstd, row, rstd[m][half]);
    });
    scale_rows(o, rstd);
    multiply_columns(o, static_cast<const float*>(p_.norm.weight));
  }

  __device__ void multiply_columns(O& o, const float* weight) const {
    const int first_col = place_.map * T::kHalfV + place_.lane % 4 * 2;
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
  const Place<T>& place_;
  const Handover<T>& handover_;
  char* staging_;
};

}  // namespace diffattn::cuda::sm80
