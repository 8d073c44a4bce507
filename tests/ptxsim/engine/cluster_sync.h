// The part of barrier that concerns clusters.
#pragma once

#include "decoder.h"

namespace ptxsim {

void decode_cluster_barrier(Form& f);

}  // namespace ptxsim
