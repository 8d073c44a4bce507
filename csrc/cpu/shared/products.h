// What products are made of: how operands hold their numbers, and how one step of a sum is formed.
//
// A type of products has
//   C       the compute type, in which sums are formed
//   T       what operands hold: a number, or a pair of numbers that follow each other in the sum
//   kPer    numbers of the summed dimension in a T: with pairs a step of a sum takes two
//   Row     a vector of T
//   add     acc + a·b, for each lane
#pragma once
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "convert.h"

namespace diffattn::cpu {
namespace {

// Numbers of the compute type, each multiplied and added by one instruction.
template <class Compute>
struct Numbers {
  using C = Compute;
  using T = Compute;
  static constexpr int kPer = 1;
  using Row = typename Simd<C>::V;

  static Row load(const T* p) { return Simd<C>::load(p); }
  static inline __attribute__((always_inline)) Row add(Row acc, T a, Row b) {
    return acc + Simd<C>::set(a) * b;
  }

  // A row of n numbers as operands hold it; `room` is for what has to be made for that.
  static const T* hold(int64_t, const C* row, T*) { return row; }
};

// Pairs of bf16, the first in the low half of 32 bits; sums are in fp32. Dot has the instructions: a sum
// and a rounding to nearest.
template <class Dot>
struct Pairs {
  using C = float;
  using T = uint32_t;
  static constexpr int kPer = 2;
  using Row = Bits;
  static constexpr T kFirst = 0xffffu, kSecond = 0xffff0000u;  // the halves of a pair

  static Row load(const T* p) { return load_any<Row>(p); }
  static void store(T* p, Row row) { __builtin_memcpy(p, &row, sizeof row); }
  static inline __attribute__((always_inline)) Floats add(Floats acc, T a, Row b) {
    return Dot::add(acc, a - Row{}, b);
  }

  static const T* hold(int64_t n, const float* row, T* room) {
    store_row(DType::bf16, row, n, room, 0);
    return room;
  }
  static Halves round(Floats x) { return Dot::round(x); }
  static Row pair(Halves first, Halves second) { return widen(first) | widen(second) << 16; }
};

#if defined(__AVX512BF16__)
// vdpbf16ps and vcvtneps2bf16.
struct NativeDot {
  static Halves round(Floats x) { return (Halves)_mm512_cvtneps_pbh((__m512)x); }
  static inline __attribute__((always_inline)) Floats add(Floats acc, Bits a, Bits b) {
    return (Floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// The same numbers by other instructions: the second product is added before the first, each sum is
// rounded once, and a number below the smallest normal one counts as 0.
struct EmulatedDot {
  static Halves round(Floats x) { return narrow(to_bf16(x)); }
  static Floats without_denormals(Floats x) {
    const Bits u = as_bits(x);
    return as_float((u & 0x7f800000u) == 0 ? u & 0x80000000u : u);
  }
  static Floats add(Floats acc, Bits a, Bits b) {
    const auto number = [](Bits u) { return without_denormals(as_float(u)); };
    const Bits second = Bits{} + 0xffff0000u;
    acc = without_denormals(acc);  // a product of two bf16 is exact
    acc = without_denormals(acc + number(a & second) * number(b & second));
    return without_denormals(acc + number(a << 16) * number(b << 16));
  }
};

}  // namespace
}  // namespace diffattn::cpu
