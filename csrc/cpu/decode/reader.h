// How a kernel reads rows of the tensors' type as vectors of the compute type, without a copy: 2·W
// numbers at a time, so that 16-bit ones fill a load too.
#pragma once
#include "../shared/convert.h"

namespace diffattn::cpu {
namespace {

// Rows of the compute type, in their own order.
template <class C>
struct Whole {
  using T = C;
  using S = Simd<C>;
  static void load(const T* p, typename S::V (&x)[2]) {
    x[0] = S::load(p);
    x[1] = S::load(p + S::W);
  }
};

struct WholeF16 {
  using T = uint16_t;
  static void load(const T* p, Floats (&x)[2]) {
    x[0] = widen_f16(load_any<Halves>(p));
    x[1] = widen_f16(load_any<Halves>(p + Simd<float>::W));
  }
};

// Rows of bf16 out of order: the even numbers of 2·W, then the odd ones. A 32-bit lane holds one of
// each, so that nothing is unpacked; who reads in pairs keeps what meets these rows in the same
// order (to_pairs, from_pairs).
struct PairsOfBf16 {
  using T = uint16_t;
  static void load(const T* p, Floats (&x)[2]) {
    constexpr bool low_first = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    const Bits both = load_any<Bits>(p);
    x[low_first ? 0 : 1] = as_float(both << 16);
    x[low_first ? 1 : 0] = as_float(both & 0xffff0000u);
  }
};

// Calls f(reader) with the reader of rows of type t.
template <class C, class F>
void with_reader(DType t, const F& f) {
  if constexpr (sizeof(C) == sizeof(float)) {
    if (t == DType::bf16) return f(PairsOfBf16{});
    if (t == DType::f16) return f(WholeF16{});
  }
  f(Whole<C>{});
}

// Reorders a row as PairsOfBf16 reads it; n is a multiple of 2·W.
template <class C>
void to_pairs(int64_t n, C* row) {
  constexpr int W = Simd<C>::W;
  for (C* run = row; run < row + n; run += 2 * W) {
    C ordered[2 * W];
    for (int i = 0; i < 2 * W; ++i) ordered[i % 2 * W + i / 2] = run[i];
    __builtin_memcpy(run, ordered, sizeof ordered);
  }
}

template <class C>
void from_pairs(int64_t n, C* row) {
  constexpr int W = Simd<C>::W;
  for (C* run = row; run < row + n; run += 2 * W) {
    C ordered[2 * W];
    for (int i = 0; i < 2 * W; ++i) ordered[i] = run[i % 2 * W + i / 2];
    __builtin_memcpy(run, ordered, sizeof ordered);
  }
}

}  // namespace
}  // namespace diffattn::cpu
