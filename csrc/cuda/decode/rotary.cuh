// Rotary position embedding (RoFormer, arXiv 2104.09864), 16 bytes of a row at a time.
#pragma once
#include "../common/mma.cuh"

namespace diffattn::cuda::decoding {

template <class Element>
class Rotator {
 public:
  __device__ explicit Rotator(const Rotary& rotary)
      : cos_(static_cast<const Element*>(rotary.cos)),
        sin_(static_cast<const Element*>(rotary.sin)),
        last_(int(rotary.seqlen) - 1),
        half_(last_ < 0 ? 0 : int(unsigned(rotary.dim) / 2)),
        interleaved_(rotary.interleaved) {}

  // A chunk of a row, rotated to `position` and rounded. A position behind the tables' last is taken as the
  // last.
  __device__ uint4 load(const Element* row, int col, int position) const {
    const uint4 own = chunk(row + col);
    if (col >= 2 * half_) return own;
    const int64_t angles = int64_t(min(max(position, 0), last_)) * half_;
    if (interleaved_) return rotate_within(own, angles + col / 2);
    const bool upper = col >= half_;
    const uint4 other = chunk(row + (upper ? col - half_ : col + half_));
    return rotate_with(own, other, angles + (upper ? col - half_ : col), upper);
  }

 private:
  __device__ static uint4 chunk(const Element* x) { return *reinterpret_cast<const uint4*>(x); }

  // (x, y) to (x·cos - y·sin, y·cos + x·sin). Each operation is rounded, as if it were a separate one on tensors,
  // so that a row rotated here has the same bits as a row that was rotated before the call.
  __device__ float first(float x, float y, int64_t angle) const {
    return __fsub_rn(__fmul_rn(x, float(cos_[angle])), __fmul_rn(y, float(sin_[angle])));
  }
  __device__ float second(float x, float y, int64_t angle) const {
    return __fadd_rn(__fmul_rn(x, float(sin_[angle])), __fmul_rn(y, float(cos_[angle])));
  }

  // Pairs (0, 1), (2, 3), ..
  __device__ uint4 rotate_within(const uint4& own, int64_t angle) const {
    const uint32_t words[4] = {own.x, own.y, own.z, own.w};
    uint32_t rotated[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = Half<Element>::unpack(words[i]);
      rotated[i] = Half<Element>::pack(first(x.x, x.y, angle + i), second(x.x, x.y, angle + i));
    }
    return {rotated[0], rotated[1], rotated[2], rotated[3]};
  }

  // Pairs (i, i + half); other is the chunk of the other half.
  __device__ uint4 rotate_with(const uint4& own, const uint4& other, int64_t angle,
                               bool upper) const {
    const uint32_t words[4] = {own.x, own.y, own.z, own.w};
    const uint32_t others[4] = {other.x, other.y, other.z, other.w};
    uint32_t rotated[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = Half<Element>::unpack(words[i]), y = Half<Element>::unpack(others[i]);
      const int64_t low = angle + 2 * i, high = low + 1;
      rotated[i] = upper ? Half<Element>::pack(second(y.x, x.x, low), second(y.y, x.y, high))
                         : Half<Element>::pack(first(x.x, y.x, low), first(x.y, y.y, high));
    }
    return {rotated[0], rotated[1], rotated[2], rotated[3]};
  }

  const Element *cos_, *sin_;  // [seqlen, half]
  int last_, half_;
  bool interleaved_;
};

}  // namespace diffattn::cuda::decoding
