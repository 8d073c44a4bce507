// Spreads a grid's CTAs over host threads, in an order the seed chooses.
#pragma once

#include "cta.h"

namespace ptxsim {

LaunchReport run_grid(const Launch& launch, int threads);

}  // namespace ptxsim
