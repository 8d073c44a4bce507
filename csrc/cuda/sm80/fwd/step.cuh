// What a pair of warps does with the keys of a step: where it reads them, its softmax, its exchange of P.
#pragma once
#include "../../common/accumulators.cuh"
#include "../../common/softcap.cuh"
#include "../../common/softmax.cuh"
#include "handover.cuh"
#include "products.cuh"
#include "tiles.cuh"

namespace diffattn::cuda::sm80 {

template <class T>
using QFragment = uint32_t[T::kRowTiles][T::kHeadDim / 16][4];
template <class T>
using SFragment = float[T::kRowTiles][T::kPartKeys / 8][4];
template <class T>
using PFragment = uint32_t[T::kRowTiles][T::kPartKeys / 16][4];
template <class T>
using OFragment = float[T::kRowTiles][T::kHalfV / 8][4];

// Where this lane reads the tiles of a step. From one step to the next the two stages change places.
template <class T>
class StepTiles {
 public:
  __device__ StepTiles(char* smem, const FwdParams& params, const Place<T>& place)
      : k_(smem + chunks_first<typename T::KTile>(place.lane) +
           (T::shares_k(bytes_to_noise(params.maps[kSignal].k, params.maps[kNoise].k))
                ? 0
                : T::KTile::offset(0, place.map * T::kHeadDim))),
        v_(smem + T::KTile::kBytes + rows_first<typename T::VTile>(place.lane) +
           T::VTile::offset(0, place.map * T::kHalfV)),
        next_stage_(smem + T::kStageBytes),
        flip_(T::kStageBytes) {}

  // Of this warp's map; this warp's half of the columns.
  __device__ const char* keys(int part) const {
    return k_ + T::KTile::offset(part * T::kPartKeys, 0);
  }
  __device__ const char* values(int part) const {
    return v_ + T::VTile::offset(part * T::kPartKeys, 0);
  }
  __device__ char* stage() const { return next_stage_ - flip_; }
  __device__ char* next_stage() const { return next_stage_; }

  __device__ void advance() {
    k_ += flip_;
    v_ += flip_;
    next_stage_ -= flip_;
    flip_ = -flip_;
  }

 private:
  const char *k_, *v_;
  char* next_stage_;
  int flip_;
};

// S of this warp's map, the keys of a part; capped if T says so.
template <class T>
__device__ void multiply_scores(SFragment<T>& s, const QFragment<T>& q, const char* k,
                                const FwdParams& params) {
  multiply_qk<T>(s, q, k);
  if (T::kCapped) cap_scores(s, cap_factor(params.softmax_scale, params.softcap));
}

// P of this warp's map, handed to its partner and added up. Returns whether references were raised, and O
// scaled to them; then the partner scales too.
template <class T>
__device__ bool exponentiate(Softmax<T::kRowTiles>& softmax, const SFragment<T>& s, PFragment<T>& p,
                             OFragment<T>& o, const Handover<T>& handover, char* smem, int part) {
  using Element = typename T::Element;
  float exact[T::kRowTiles][2];
  softmax.template exponentiate<Element>(s, p, exact);
  const bool grew = softmax.outgrown(exact);
  if (grew) {
    float factor[T::kRowTiles][2];
    const SharedOrigins<T> origins(smem);
    softmax.template raise<Element>(s, exact, factor, origins);
    softmax.template exponentiate_raised<Element>(s, p, exact, origins);
    scale_rows(o, factor);
    handover.rows.put(factor);
  }
  handover.put(p);
  softmax.template add<Element>(exact, p, handover.rows.lane, [&](int row_tile, int key_block) {
    return T::tensor_core_sums(row_tile, part * T::kPartKeys / 16 + key_block);
  });
  return grew;
}

// The partner's P. O of its map is scaled where it has raised references.
template <class T>
__device__ void take_over(const Handover<T>& handover, bool grew, PFragment<T>& p,
                          OFragment<T>& o) {
  const bool grew_theirs = handover.wait_for_growth(grew);  // both have written P and factors
  handover.get(p);
  if (!grew_theirs) return;
  float factor[T::kRowTiles][2];
  handover.rows.get(factor);
  scale_rows(o, factor);
}

}  // namespace diffattn::cuda::sm80
