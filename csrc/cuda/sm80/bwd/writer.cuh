// From the sums of dV and dK to what is stored.
#pragma once
#include "../shared/accumulators.cuh"
#include "loads.cuh"
#include "shares.cuh"

namespace diffattn::cuda::sm80 {

// Rounds and writes a warp's part of dV and dK.
template <class T>
class GradWriter {
  using Element = typename T::Element;
  static constexpr int kFragments = T::kGradKeyTiles * T::kGradColTiles * 4;
  using Share = GradShare<T>;
  using Acc = float[T::kGradKeyTiles][T::kGradColTiles][4];

 public:
  __device__ GradWriter(const BwdParams& params, const Sequence& sequence, const KeyBlock<T>& block,
                        const GradShare<T>& share, int warp, int lane, char* smem)
      : p_(params),
        sequence_(sequence),
        block_(block),
        share_(share),
        warp_(warp),
        lane_(lane),
        smem_(smem) {}

  __device__ void run(GradFragment<T>& grad) const {
    const int dv = int(p_.shape.headdim_v), d = int(p_.shape.headdim);
    if constexpr (T::kJointK) {
      store(grad[0], p_.dv, dv);
      scale(grad[1]);
      store(grad[1], p_.map_grads[kSignal].dk, d);
    } else {
      if (p_.shape.k_components == 1) add_maps(grad[0]);
      if (share_.of == Share::kDv) {
        store(grad[0], p_.dv, dv);
      } else if (share_.of - Share::kDv <= p_.shape.k_components) {
        scale(grad[0]);
        store(grad[0], p_.map_grads[share_.of - Share::kDk1].dk, d);
      }
    }
  }

 private:
  __device__ void scale(Acc& grad) const {
    const float factor = float(p_.softmax_scale);
#pragma unroll
    for (int m = 0; m < T::kGradKeyTiles; ++m)
#pragma unroll
      for (int n = 0; n < T::kGradColTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) grad[m][n][i] *= factor;
  }

  // Where V is twice as wide as a K that both maps share, dK is the sum of two warps' parts.
  __device__ void add_maps(Acc& grad) const {
    const int part = warp_ / T::kGradColGroups * T::kQuarter + warp_ % T::kQuarter;
    float* const sums = reinterpret_cast<float*>(smem_) + part * kFragments * 32 + lane_;
    float* const mine = &grad[0][0][0];
    if (share_.of == Share::kDk2)
#pragma unroll
      for (int i = 0; i < kFragments; ++i) sums[i * 32] = mine[i];
    __syncthreads();  // the noise's part is there
    if (share_.of == Share::kDk1)
#pragma unroll
      for (int i = 0; i < kFragments; ++i) mine[i] += sums[i * 32];
    __syncthreads();  // it has been read, and its place can be used again
  }

  __device__ void store(const Acc& grad, const View& to, int end_col) const {
    const int64_t offset = sequence_.k_offset(to) + block_.head_k * to.head;
    store_rows<Element, typename T::OutTile>(grad, smem_ + warp_ * T::OutTile::kBytes, to, offset,
                                             block_.first_key() + share_.first_key,
                                             sequence_.seqlen_k, share_.first_col, end_col, lane_);
  }

  const BwdParams& p_;
  const Sequence& sequence_;
  const KeyBlock<T>& block_;
  const GradShare<T>& share_;
  int warp_, lane_;
  char* smem_;
};

}  // namespace diffattn::cuda::sm80
