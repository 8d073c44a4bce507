#pragma once

#include "warp.h"

namespace ptxsim {

// d = a b + c for 16x8 tiles; k_registers is the number of B's registers (k = 8 each).
template <class H>
void multiply_halves(Warp& w, const Ref* d, const Ref* a, const Ref* b, const Ref* c, int k_registers);

}  // namespace ptxsim
