// From accumulators of O1, and O2 in the stash, to what is stored.
#pragma once
#include "../../common/accumulators.cuh"
#include "place.cuh"
#include "softmax.cuh"
#include "stash.cuh"

namespace diffattn::cuda::sm90 {

// What one warp does with its 16 rows.
template <class T>
class Epilogue {
  using Element = typename T::Element;
  using Staging = Tile<16, T::kChunkCols>;
  static constexpr int kColTiles = T::kHeadDimV / 8;
  static_assert(Staging::kBytes <= T::kChunkBytes);

 public:
  __device__ Epilogue(const FwdParams& params, char* smem)
      : p_(params),
        place_(place_in<T>(smem)),
        seat_(place_),
        stash_(smem, seat_.warp(), seat_.lane) {}

  // Divides by the normaliser, and writes this map's LSE. A row that saw no key gets O = 0.
  template <class Origins>
  __device__ void normalise(int map, const Softmax<Element>& softmax, const Origins& origins,
                            OFragment<T>& o) const {
    Rows inverse;
    for_rows([&](int half, int row) {
      const float sum = softmax.exact_sum(0, half), rounded = softmax.rounded_sum(0, half);
      inverse[0][half] = sum == 0 ? 0.f : 1 / rounded;
      const float log2_sum =  // no subnormal sums
          sum == 0 ? -INFINITY : softmax.log2_sum_of(0, half, __log2f(sum), origins);
      store_statistic(p_.maps[map].lse, row, log2_sum * float(M_LN2));
    });
    scale_rows(o, inverse);
  }

  __device__ void keep(const OFragment<T>& o2) const { stash_.put(o2); }

  // Where the maps' own results are asked for.
  __device__ void store_own(int map, const OFragment<T>& o) const {
    store<float>(o, p_.maps[map].o);
  }

  // o is O1, and is used up.
  __device__ void run(OFragment<T>& o) const {
    subtract(o);
    if (p_.norm.eps >= 0) {
      if (p_.o.data) store(o, p_.o);
      normalise_rms(o);
    } else {
      multiply_columns(o, nullptr);
    }
    store(o, p_.out);
  }

 private:
  // f(half, row of the sequence) for the rows of this lane.
  template <class F>
  __device__ void for_rows(const F& f) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) f(half, seat_.first_row + half * 8 + seat_.lane / 4);
  }

  // Writes a row's number of a [batch, head, row] tensor, by one lane of the quad.
  __device__ void store_statistic(const View& to, int row, float x) const {
    if (seat_.lane % 4 != 0 || row >= place_.sequence.seqlen_q) return;
    static_cast<float*>(
        to.data)[place_.sequence.q_offset(to) + place_.head * to.head + row * to.row] = x;
  }

  template <class Stored>
  __device__ void store_chunk(const OChunk<T>& o, int chunk, const View& to) const {
    store_rows<Stored, Staging>(o, stash_.room(chunk), to,
                                place_.sequence.q_offset(to) + place_.head * to.head,
                                seat_.first_row, place_.sequence.seqlen_q, chunk * T::kChunkCols,
                                int(p_.shape.headdim_v), seat_.lane);
  }

  // Nothing is in the stash any more.
  template <class Stored = Element>
  __device__ void store(const OFragment<T>& o, const View& to) const {
#pragma unroll
    for (int chunk = 0; chunk < T::kChunks; ++chunk) {
      OChunk<T> part;
      for_chunk(chunk, [&](int n, int of_o, int i) { part[0][n][i] = o[0][of_o][i]; });
      store_chunk<Stored>(part, chunk, to);
    }
  }

  // f(tile of the chunk, tile of O, number in it)
  template <class F>
  __device__ static void for_chunk(int chunk, const F& f) {
#pragma unroll
    for (int n = 0; n < T::kChunkTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(n, chunk * T::kChunkTiles + n, i);
  }

  // O = O1 - lambda·O2 and O2 + lambda·O1, in fp32. The two are O1 and O2 rotated, so their rounding errors are
  // spread evenly over both, whatever lambda is.
  __device__ void subtract(OFragment<T>& o) const {
    const auto* lam = static_cast<const float*>(p_.lam.data) + place_.sequence.q_offset(p_.lam) +
                      place_.head * p_.lam.head;
    float lambda[2];
    for_rows([&](int half, int row) {
      lambda[half] = row < place_.sequence.seqlen_q ? lam[row * p_.lam.row] : 0.f;
    });
#pragma unroll
    for (int chunk = 0; chunk < T::kChunks; ++chunk) {
      OChunk<T> o2;
      stash_.get(chunk, o2);
      for_chunk(chunk, [&](int n, int of_o, int i) {
        const float o1 = o[0][of_o][i];
        o[0][of_o][i] = fmaf(-lambda[i / 2], o2[0][n][i], o1);
        o2[0][n][i] = fmaf(lambda[i / 2], o1, o2[0][n][i]);
      });
      __syncwarp();  // all lanes have got this chunk: outputs may be staged in its place
      if (p_.o_complement.data) store_chunk<Element>(o2, chunk, p_.o_complement);
    }
  }

  // Y = O·rstd·weight·scale. A row lies in one quad.
  __device__ void normalise_rms(OFragment<T>& o) const {
    Rows rstd;
    for_rows([&](int half, int row) {
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kColTiles; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) sum = fmaf(o[0][n][i], o[0][n][i], sum);
      const float mean = quad_sum(sum) / float(p_.shape.headdim_v);
      rstd[0][half] = rsqrtf(mean + float(p_.norm.eps));
      if (p_.rstd.data) store_statistic(p_.rstd, row, rstd[0][half]);
    });
    scale_rows(o, rstd);
    multiply_columns(o, static_cast<const float*>(p_.norm.weight));
  }

  __device__ void multiply_columns(OFragment<T>& o, const float* weight) const {
#pragma unroll
    for (int n = 0; n < kColTiles; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int col = n * 8 + seat_.lane % 4 * 2 + i;
        const bool weighted = weight && col < p_.shape.headdim_v;
        const float factor = float(p_.norm.scale) * (weighted ? weight[col] : 1.f);
        o[0][n][i] *= factor;
        o[0][n][i + 2] *= factor;
      }
  }

  const FwdParams& p_;
  const Place<T>& place_;
  Seat<T> seat_;
  Stash<T> stash_;
};

}  // namespace diffattn::cuda::sm90
