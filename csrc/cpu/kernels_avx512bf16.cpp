// AVX-512 with its products of bf16. setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace diffattn::cpu

#include "isa_pairs.h"

namespace diffattn::cpu {
const Kernels kAvx512Bf16 = pairs_table<Pairs<NativeDot>, kAvx512>("avx512bf16");
}
