// AVX-512 (F, BW, DQ, VL). setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace diffattn::cpu

#include "isa.h"

namespace diffattn::cpu {
const Kernels kAvx512{"avx512", fwd_any, bwd_any, decode_any};
}
