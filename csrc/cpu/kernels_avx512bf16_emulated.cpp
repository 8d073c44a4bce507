// What kernels_avx512bf16.cpp computes, bit for bit, by AVX2's instructions: for the tests of machines without
// the others. Vectors are as wide, so every sum has the same order. setup.py and CMakeLists.txt give this
// file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace diffattn::cpu

#include "isa_pairs.h"

namespace diffattn::cpu {
const Kernels kAvx512Bf16Emulated = pairs_table<Pairs<EmulatedDot>, kAvx2>("avx512bf16-emulated");
}
