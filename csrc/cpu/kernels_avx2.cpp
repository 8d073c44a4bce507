// AVX2 and FMA. setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 32;
}
}  // namespace diffattn::cpu

#include "isa.h"

namespace diffattn::cpu {
const Kernels kAvx2{"avx2", fwd_any, bwd_any, decode_any};
}
