// What kernels_avx512bf16.cpp computes, bit for bit, by AVX2's instructions: for the tests of machines without
// the others. Vectors are as wide, so every sum has the same order. setup.py and CMakeLists.txt give this
// file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace diffattn::cpu

#include "calls.h"

namespace diffattn::cpu {
const Calls kAvx512Bf16Emulated = kCallsOver<Pairs<EmulatedDot>>;
}
