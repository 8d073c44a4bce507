// Any machine: 128-bit vectors. setup.py and CMakeLists.txt give this file its flags.
namespace diffattn::cpu {
namespace {
constexpr int kVectorBytes = 16;
}
}  // namespace diffattn::cpu

#include "isa.h"

namespace diffattn::cpu {
const Kernels kPortable{"portable", fwd_any, bwd_any, decode_any};
}
