// What every matrix instruction demands: "all threads in the warp must execute the same instruction".
#pragma once

#include "cta.h"
#include "warp.h"

namespace ptxsim {

// False if the warp has to wait for lanes that are elsewhere.
inline bool enter_whole_warp(Warp& w) {
    if (w.alive != kFull && w.cta->checks(kCheckDivergence))
        w.fail(ErrorKind::Divergence,
               "A warp-wide matrix instruction runs in a warp some of whose threads have exited or do not exist.");
    return w.converge(kFull);
}

}  // namespace ptxsim
