// Which tiles of keys a CTA goes over.
#pragma once
#include "../../common/softmax.cuh"
#include "place.cuh"

namespace diffattn::cuda::sm90 {

// One after the other, in both maps alike: the producer copies them, the consumers multiply them. Of a head that
// streams with sinks those of the sinks come first, then those of the window.
template <class T>
class KeyTiles {
 public:
  __device__ KeyTiles(const FwdParams& params, const Place<T>& place)
      : p_(params),
        place_(place),
        interval_(HeadMask(params.mask, place.head_k, place.sequence).first(place.end_row() - 1)) {
    enter();
    if (!has_one()) leave_interval();
  }

  __device__ bool has_one() const { return first_key_ < end_; }
  __device__ int first_key() const { return first_key_; }

  __device__ void advance() {
    first_key_ += T::kKeys;
    if (!has_one()) leave_interval();
  }

  // Whether each of 16 rows sees every key of this tile.
  __device__ bool is_full(int first_row) const {
    return first_key_ >= interval_.begin(first_row + 15) &&
           first_key_ + T::kKeys <= interval_.end(first_row);
  }
  __device__ const KeyInterval& interval() const { return interval_; }

 private:
  __device__ void enter() {
    first_key_ = interval_.begin(place_.row) / T::kKeys * T::kKeys;
    end_ = interval_.end(place_.end_row() - 1);
  }
  __device__ void leave_interval() {
    if (interval_.end_key() == place_.sequence.seqlen_k) return;
    // Made again, because it would take registers.
    interval_ = HeadMask(p_.mask, place_.head_k, place_.sequence).window();
    enter();
  }

  const FwdParams& p_;
  const Place<T>& place_;
  KeyInterval interval_;
  int first_key_, end_;
};

}  // namespace diffattn::cuda::sm90
