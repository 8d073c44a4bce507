// The three calls over one type of products; included once by each kernels_<isa>.cpp.
#pragma once
#include "bwd/backward.h"
#include "decode/decode.h"
#include "fwd/forward.h"
#include "kernels.h"

namespace diffattn::cpu {
namespace {

template <class P>
constexpr Calls kCallsOver{forward<P>, backward<P>, decode<P>};

}  // namespace
}  // namespace diffattn::cpu
