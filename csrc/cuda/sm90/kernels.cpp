// What the kernels for sm_90a offer: the forward, for most calls. That machine code runs on no other device.
#include "../kernels.h"

#include "fwd/fwd.h"

namespace diffattn::cuda {

const Kernels kSm90 = {
    "sm90",
    [](int capability) { return capability == 90; },
    {sm90::takes_fwd, {[](const FwdParams&) { return int64_t(0); }, sm90::fwd}},
    {},
    {},
};

}  // namespace diffattn::cuda
