// AVX-512 (F, BW, DQ, VL). setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 64;
}
}  // namespace diffattn::cpu

#include "calls.h"

namespace diffattn::cpu {
const Kernels kAvx512{kCallsOver<Numbers<double>>, kCallsOver<Numbers<float>>};
}
