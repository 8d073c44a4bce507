// What there is for an H100: the forward for sm_90a, for most calls, whose machine code runs on no other device; and
// decoding with dependent launches. Where the build has this folder it compiles decoding for sm_90 too.
#include "../kernels.h"
#include "../decode/decode.h"
#include "fwd/fwd.h"

namespace diffattn::cuda {

const Kernels kSm90 = {
    "sm90",
    [](int capability) { return capability == 90; },
    {sm90::takes_fwd, {[](const FwdParams&) { return int64_t(0); }, sm90::fwd}},
    {},
    {[](const DecodeParams&) { return true; },
     {decoding::decode_workspace, decoding::decode_dependently}},
};

}  // namespace diffattn::cuda
