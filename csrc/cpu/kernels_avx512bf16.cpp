// AVX-512 with its products of bf16. setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace diffattn::cpu

#include "calls.h"

namespace diffattn::cpu {
const Calls kAvx512Bf16 = kCallsOver<Pairs<NativeDot>>;
}
