// Which keys a CTA goes over, and which of them the rows of a pair of warps see.
#pragma once
#include "../../common/lanes.cuh"
#include "place.cuh"

namespace diffattn::cuda::sm80 {

// Where parts of kKeys keys begin that some row of a range sees, or that every row sees completely.
template <int kKeys>
class SeenParts {
 public:
  __device__ SeenParts(const KeyInterval& mask, int first_row, int end_row)
      : some_(mask.begin(first_row) - kKeys + 1), all_(mask.begin(end_row - 1)) {
    // Kept out of uniform registers, where a comparison takes an instruction more.
    const bool has_rows = first_row < end_row;
    some_count_ = has_rows ? max(mask.end(end_row - 1) - some_, 0) : 0;
    all_count_ = keep_uniform(has_rows ? max(mask.end(first_row) - kKeys + 1 - all_, 0) : 0);
  }

  __device__ void none_is_full() { all_count_ = 0; }
  __device__ bool meets(int first_key) const { return unsigned(first_key - some_) < some_count_; }
  __device__ bool are_full(int first_key) const { return unsigned(first_key - all_) < all_count_; }

 private:
  int some_, all_;  // the first, of each kind
  unsigned some_count_, all_count_;
};

// The keys of the window of a CTA's rows. With a cap they are found anew, because kept from before the steps they would
// spill at 128.
template <class T>
__device__ KeyInterval window_of(const HeadMask& head_mask, const FwdParams& params,
                                 const Place<T>& place) {
  if constexpr (T::kCapped)
    return HeadMask(params.mask, keep_uniform(place.head_k), place.sequence).window();
  else
    return head_mask.window();
}

// Those of one interval.
template <class T>
struct IntervalKeys {
  KeyInterval mask;
  int begin, end;                // steps of the CTA
  SeenParts<T::kPartKeys> seen;  // by the pair

  __device__ IntervalKeys(const KeyInterval& interval, const Place<T>& place, float sign)
      : mask(interval),
        begin(mask.begin(place.cta_row) / T::kKeys * T::kKeys),
        end(mask.end(place.cta_end_row() - 1)),
        seen(mask, place.first_row, place.pair_end_row()) {
    if (sign < 0) seen.none_is_full();  // only hide() gives logits the sign
  }
};

}  // namespace diffattn::cuda::sm80
