// What the kernels for sm_80 offer: every shape, on every later device too. A device without machine code of
// its own compiles their PTX.
#include "../kernels.h"

#include "../decode/decode.h"
#include "bwd/bwd.h"
#include "fwd/fwd.h"

namespace diffattn::cuda {
namespace {

template <class Params>
bool takes_all(const Params&) {
  return true;
}

}  // namespace

const Kernels kSm80 = {
    "sm80",
    [](int capability) { return capability >= 80; },
    {takes_all, {[](const FwdParams&) { return int64_t(0); }, sm80::fwd}},
    {takes_all, {sm80::bwd_workspace, sm80::bwd}},
    {takes_all, {decoding::decode_workspace, decoding::decode}},
};

}  // namespace diffattn::cuda
