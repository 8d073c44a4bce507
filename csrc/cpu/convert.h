// Rows of numbers between the tensors' types and the compute type. The loops are free of branches,
// so the compiler turns them into vector code.
#pragma once
#include <cstdint>

#include "../diffattn.h"

namespace diffattn::cpu {
namespace {

inline int64_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

inline const void* element(DType t, const void* p, int64_t i) {
  return static_cast<const char*>(p) + i * size_of(t);
}

inline void* element(DType t, void* p, int64_t i) { return static_cast<char*>(p) + i * size_of(t); }

inline float as_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

inline uint32_t as_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

inline float from_bf16(uint16_t h) { return as_float(uint32_t(h) << 16); }

inline uint16_t to_bf16(float f) {  // to nearest, ties to even
  const uint32_t u = as_bits(f);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return f == f ? rounded : (u >> 16) | 0x40;  // a NaN must not round to infinity
}

inline float from_f16(uint16_t h) {
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t sign = (h & 0x8000u) << 16;
  const float finite = as_float(magnitude << 13) * 0x1p112f;  // also right for denormals
  const uint32_t special = magnitude << 13 | 0x7f800000u;     // infinity, NaN
  return as_float((magnitude < 0x7c00 ? as_bits(finite) : special) | sign);
}

inline uint16_t to_f16(float f) {  // to nearest, ties to even
  const uint32_t u = as_bits(f);
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 moves a number below 2^-14 so that its last bit is a half's smallest denormal.
  const uint32_t denormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
  const uint32_t finite = magnitude < (113u << 23) ? denormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return uint16_t((magnitude < as_bits(65520.f) ? finite : special) | sign);
}

// dst[0..n) = p[at..at+n)
template <class C>
inline void load_row(DType t, const void* p, int64_t at, int64_t n, C* __restrict dst) {
  const uint16_t* __restrict h = static_cast<const uint16_t*>(p) + at;
  if (t == DType::bf16) {
    constexpr int kRun = 16;  // a fixed length, which the compiler turns into a few instructions
    int64_t i = 0;
    for (; i + kRun <= n; i += kRun)
      for (int m = 0; m < kRun; ++m) dst[i + m] = from_bf16(h[i + m]);
    for (; i < n; ++i) dst[i] = from_bf16(h[i]);
  } else if (t == DType::f16) {
    for (int64_t i = 0; i < n; ++i) dst[i] = from_f16(h[i]);
  } else {
    __builtin_memcpy(dst, static_cast<const C*>(p) + at, n * sizeof(C));
  }
}

// p[at..at+n) = src[0..n)
template <class C>
inline void store_row(DType t, const C* src, int64_t n, void* p, int64_t at) {
  auto* h = static_cast<uint16_t*>(p) + at;
  if (t == DType::bf16) {
    for (int64_t i = 0; i < n; ++i) h[i] = to_bf16(src[i]);
  } else if (t == DType::f16) {
    for (int64_t i = 0; i < n; ++i) h[i] = to_f16(src[i]);
  } else {
    __builtin_memcpy(static_cast<C*>(p) + at, src, n * sizeof(C));
  }
}

// Rounds a row to the tensors' type.
template <class C>
inline void round_row(DType t, int64_t n, C* row) {
  if (t == DType::bf16) {
    for (int64_t i = 0; i < n; ++i) row[i] = from_bf16(to_bf16(row[i]));
  } else if (t == DType::f16) {
    for (int64_t i = 0; i < n; ++i) row[i] = from_f16(to_f16(row[i]));
  }
}

}  // namespace
}  // namespace diffattn::cpu
