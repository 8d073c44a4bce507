// AVX2, FMA and F16C, which every machine with AVX2 has. setup.py and CMakeLists.txt give this file
// its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 32;
}
}  // namespace diffattn::cpu

#include "calls.h"

namespace diffattn::cpu {
const Kernels kAvx2{kCallsOver<Numbers<double>>, kCallsOver<Numbers<float>>};
}
