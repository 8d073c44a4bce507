// Any machine: 128-bit vectors. setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 16;
}
}  // namespace diffattn::cpu

#include "calls.h"

namespace diffattn::cpu {
const Kernels kPortable{kCallsOver<Numbers<double>>, kCallsOver<Numbers<float>>};
}
