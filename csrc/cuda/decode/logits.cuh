// From the logits of a block of keys to P: the mask, and the softmax.
#pragma once
#include "../common/accumulators.cuh"
#include "../common/softmax.cuh"
#include "place.cuh"
#include "splits.cuh"

namespace diffattn::cuda::decoding {

// Which keys of a block a lane hides.
class LaneMask {
 public:
  __device__ LaneMask(const KeyInterval& mask, const PackedRows& rows, const Role& role) {
    const int row = rows.row_of(min(rows.begin + role.row(), rows.end - 1));
    seen_ = {mask.begin(row), mask.end(row)};
    full_ = {mask.begin(rows.last_row()), mask.end(rows.first_row())};
    lane_ = role.lane;
  }

  // Whether every row of the CTA sees every key of the block at `key`.
  __device__ bool all_seen(int key) const {
    return key >= full_.begin && key + kBlockKeys <= full_.end;
  }

  // Hides the keys that the lane's row does not see: all keys of a block that was not found.
  __device__ void hide(float (&s)[1][2][4], int key, bool found) const {
    const Range seen = found ? Range{seen_.begin - key, seen_.end - key} : Range{0, 0};
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = n * 8 + lane_ % 4 * 2 + i % 2;
        if (at < seen.begin || at >= seen.end) s[0][n][i] = -INFINITY;
      }
  }

 private:
  Range seen_;  // by the lane's row
  Range full_;  // by every row of the CTA
  int lane_;
};

// The origins of a lane's far rows (Softmax), [comp], in registers: shared memory is full.
struct RegisterOrigins {
  float x[2];

  __device__ float& operator()(int, int comp) { return x[comp]; }
  __device__ float operator()(int, int comp) const { return x[comp]; }
};

// P = exp(S) relative to the softmax's references. Where S has outgrown these, they are raised, and O
// is scaled down to the new ones.
template <class T>
__device__ void exponentiate(typename T::P& p, typename T::Logits& s, typename T::O& o,
                             Softmax<1>& softmax, RegisterOrigins& origins, int lane) {
  using Element = typename T::Element;
  float exact[1][2];
  softmax.template exponentiate<Element>(s, p, exact);
  if (softmax.outgrown(exact)) {
    float factor[1][2];
    softmax.template raise<Element>(s, exact, factor, origins);
    softmax.template exponentiate_raised<Element>(s, p, exact, origins);
    scale_rows(o, factor);
  }
  softmax.template add<Element>(exact, p, lane, [](int, int) { return true; });
}

}  // namespace diffattn::cuda::decoding
