// Vectors of kVectorBytes by the compiler's vector extensions: one source for every instruction
// set. Each kernels_*.cpp sets kVectorBytes and its flags; everything below lies in an anonymous
// namespace, so that the linker never joins code compiled for different machines.
#pragma once
#include <cstdint>

namespace diffattn::cpu {
namespace {

template <class C>
struct Simd {
  static constexpr int W = kVectorBytes / sizeof(C);
  typedef C V __attribute__((vector_size(kVectorBytes)));

  static V load(const C* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(C* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
  static V set(C x) { return x - V{}; }  // not x + V{}: that would turn -0 into +0
  static V max(V a, V b) { return a > b ? a : b; }
};

template <class C>
constexpr C kInf = C(__builtin_huge_val());
template <class C>
constexpr C kLog2e = C(1.4426950408889634074);
template <class C>
constexpr C kLn2 = C(0.6931471805599453094);

}  // namespace
}  // namespace diffattn::cpu
