// The device functions the CUDA headers leave to the driver: vprintf and __assertfail.
#pragma once

#include "warp.h"

namespace ptxsim {

enum HostCall : u8 { kVprintf, kAssertFail };

void host_printf(Warp& w, const Op& op);
[[noreturn]] void host_assert(Warp& w, const Op& op);

}  // namespace ptxsim
