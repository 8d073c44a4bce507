// What the asynchronous copies and the mbarriers need of each other.
#pragma once

#include "decoder.h"

namespace ptxsim {

// Completes every copy the active lanes have issued.
void complete_copies(Warp& w);
// cp.async.mbarrier.arrive
void decode_async_arrive(Form& f);

}  // namespace ptxsim
