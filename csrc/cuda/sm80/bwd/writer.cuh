// From the sums of dV and dK to what is stored.
#pragma once
#include "../../common/accumulators.cuh"
#include "shares.cuh"

namespace diffattn::cuda::sm80 {

// Where V is twice as wide as a K that both maps share, dK is the sum of two warps' parts: that of the signal
// takes up that of the noise.
template <class T>
__device__ void add_maps(GradFragment<T>& grad, const KeyPlace<T>& place, char* smem) {
  using Share = GradShare<T>;
  const auto of = Share::of(place);
  constexpr int kFragments = T::kGradKeyTiles * T::kGradColTiles * 4;
  const int part = place.warp / T::kGradColGroups * T::kQuarter + place.warp % T::kQuarter;
  float* const sums = reinterpret_cast<float*>(smem) + part * kFragments * 32 + place.lane;
  float* const mine = &grad[0][0][0][0];
  if (of == Share::kDk2)
#pragma unroll
    for (int i = 0; i < kFragments; ++i) sums[i * 32] = mine[i];
  __syncthreads();  // the noise's part is there
  if (of == Share::kDk1)
#pragma unroll
    for (int i = 0; i < kFragments; ++i) mine[i] += sums[i * 32];
  __syncthreads();  // it has been read, and its place can be used again
}

// Rounds and writes a warp's part of dV and dK. dK is scaled here: it was summed as the gradient of scores
// that the softmax scale had multiplied.
template <class T>
__device__ void store_gradients(GradFragment<T>& grad, const GradShare<T>& share,
                                const KeyPlace<T>& place, const BwdParams& params, char* smem) {
  const auto store = [&](const auto& sums, const View& to, int64_t end_col) {
    const int64_t offset = place.sequence.k_offset(to) + place.head_k * to.head;
    const int first_key = place.first_key + share.first_key, end_key = place.mask.end_key();
    char* const staging = smem + place.warp * T::OutTile::kBytes;
    if (params.partial)
      store_rows<float, typename T::OutTile>(sums, staging, to, offset, first_key, end_key,
                                             share.first_col, int(end_col), place.lane);
    else
      store_rows<typename T::Element, typename T::OutTile>(
          sums, staging, to, offset, first_key, end_key, share.first_col, int(end_col), place.lane);
  };
  const auto store_dk = [&](auto& sums, int map) {
    scale(sums, float(params.softmax_scale));
    store(sums, params.map_grads[map].dk, params.shape.headdim);
  };
  const auto of = share.of(place);
  if constexpr (T::kJointK) {
    store(grad[0], params.dv, params.shape.headdim_v);
    store_dk(grad[1], kSignal);
  } else if (of == share.kDv) {
    store(grad[0], params.dv, params.shape.headdim_v);
  } else if (of - share.kDv <= params.shape.k_components) {
    store_dk(grad[0], of - share.kDk1);
  }
}

}  // namespace diffattn::cuda::sm80
