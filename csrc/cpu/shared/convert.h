// Rows of numbers between the tensors' types and the compute type. Each conversion is written once, for
// a number and for a vector of them.
#pragma once
#include <cstdint>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../../diffattn.h"
#include "simd.h"

namespace diffattn::cpu {
namespace {

inline int64_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

inline const void* element(DType t, const void* p, int64_t i) {
  return static_cast<const char*>(p) + i * size_of(t);
}

inline void* element(DType t, void* p, int64_t i) { return static_cast<char*>(p) + i * size_of(t); }

using Floats = Simd<float>::V;
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

inline float as_float(uint32_t u) { return bit_cast<float>(u); }
inline Floats as_float(Bits u) { return bit_cast<Floats>(u); }
inline uint32_t as_bits(float f) { return bit_cast<uint32_t>(f); }
inline Bits as_bits(Floats f) { return bit_cast<Bits>(f); }

// U: uint32_t or Bits; F: float or Floats. A 16-bit number is in the low half of 32 bits.
template <class U>
inline auto from_bf16(U h) {
  return as_float(h << 16);
}

template <class F>
inline auto to_bf16(F f) {  // to nearest, ties to even
  const auto u = as_bits(f);
  const auto rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return f == f ? rounded : (u >> 16) | 0x40u;  // a NaN must not round to infinity
}

template <class U>
inline auto from_f16(U h) {
  const U magnitude = h & 0x7fffu;
  const U sign = (h & 0x8000u) << 16;
  const auto finite = as_float(magnitude << 13) * 0x1p112f;  // also right for denormals
  const U special = magnitude << 13 | 0x7f800000u;           // infinity, NaN
  return as_float((magnitude < 0x7c00u ? as_bits(finite) : special) | sign);
}

template <class F>
inline auto to_f16(F f) {  // to nearest, ties to even
  const auto u = as_bits(f);
  using U = decltype(as_bits(f));
  const U magnitude = u & 0x7fffffffu;
  const U sign = (u & 0x80000000u) >> 16;
  const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 moves a number below 2^-14 so that its last bit is a half's smallest denormal.
  const U denormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
  const U finite = magnitude < (113u << 23) ? denormal : normal;
  const U infinite = U{} + 0x7c00u, nan = U{} + 0x7e00u;
  const U special = magnitude > 0x7f800000u ? nan : infinite;
  return (magnitude < as_bits(65520.f) ? finite : special) | sign;
}

inline Bits widen(Halves h) { return __builtin_convertvector(h, Bits); }
inline Halves narrow(Bits u) { return __builtin_convertvector(u, Halves); }
inline uint16_t narrow(uint32_t u) { return uint16_t(u); }

// float16 takes many operations where the instruction set has none of its own.
inline Floats widen_f16(Halves h) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps((__m128i)h);
#else
  return from_f16(widen(h));
#endif
}

inline uint16_t narrow_f16(float f) { return narrow(to_f16(f)); }
inline Halves narrow_f16(Floats f) {
#if defined(__AVX512F__)
  return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)f, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (Halves)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
#else
  return narrow(to_f16(f));
#endif
}

// A vector at p, or anything else that may lie anywhere.
template <class T>
inline T load_any(const void* p) {
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

// dst[0..n) = p[at..at+n)
template <class C>
inline void load_row(DType t, const void* p, int64_t at, int64_t n, C* __restrict dst) {
  if constexpr (sizeof(C) == sizeof(float)) {
    const uint16_t* h = static_cast<const uint16_t*>(p) + at;
    const auto convert = [&](auto vector, auto number) {
      constexpr int W = Simd<float>::W;
      int64_t i = 0;
      for (; i + W <= n; i += W) Simd<float>::store(dst + i, vector(load_any<Halves>(h + i)));
      for (; i < n; ++i) dst[i] = number(uint32_t(h[i]));
    };
    if (t == DType::bf16)
      return convert([](Halves x) { return from_bf16(widen(x)); },
                     [](uint32_t x) { return from_bf16(x); });
    if (t == DType::f16) return convert(widen_f16, [](uint32_t x) { return from_f16(x); });
  }
  __builtin_memcpy(dst, static_cast<const C*>(p) + at, n * sizeof(C));
}

// p[at..at+n) = src[0..n)
template <class C>
inline void store_row(DType t, const C* src, int64_t n, void* p, int64_t at) {
  if constexpr (sizeof(C) == sizeof(float)) {
    auto* h = static_cast<uint16_t*>(p) + at;
    const auto convert = [&](auto to) {
      constexpr int W = Simd<float>::W;
      int64_t i = 0;
      for (; i + W <= n; i += W) {
        const Halves x = to(Simd<float>::load(src + i));
        __builtin_memcpy(h + i, &x, sizeof x);
      }
      for (; i < n; ++i) h[i] = to(src[i]);
    };
    if (t == DType::bf16) return convert([](auto x) { return narrow(to_bf16(x)); });
    if (t == DType::f16) return convert([](auto x) { return narrow_f16(x); });
  }
  __builtin_memcpy(static_cast<C*>(p) + at, src, n * sizeof(C));
}

// Rounds a row to the tensors' type.
template <class C>
inline void round_row(DType t, int64_t n, C* row) {
  if (t == DType::f32 || t == DType::f64) return;
  uint16_t rounded[kMostHeaddim];
  store_row(t, row, n, rounded, 0);
  load_row(t, rounded, 0, n, row);
}

}  // namespace
}  // namespace diffattn::cpu
