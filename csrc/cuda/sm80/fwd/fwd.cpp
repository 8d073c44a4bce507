// Which of the forward's kernels serves a call.
#include "fwd.h"

#include "../../common/headdims.h"

namespace diffattn::cuda::sm80 {
namespace {

using Launch = void (*)(const FwdParams&, cudaStream_t);

// [V is twice as wide as Q][bf16]
template <int kHeadDim>
constexpr Launch kLaunches[2][2] = {
    {launch_fwd<__half, kHeadDim, kHeadDim>, launch_fwd<__nv_bfloat16, kHeadDim, kHeadDim>},
    {launch_fwd<__half, kHeadDim, 2 * kHeadDim>,
     launch_fwd<__nv_bfloat16, kHeadDim, 2 * kHeadDim>}};

}  // namespace

void fwd(const FwdParams& params, void*, cudaStream_t stream) {
  const int64_t d = params.shape.headdim;
  const auto& launches =
      for_headdim(d, kLaunches<32>, kLaunches<64>, kLaunches<96>, kLaunches<128>);
  launches[params.shape.headdim_v != d][params.dtype == DType::bf16](params, stream);
}

}  // namespace diffattn::cuda::sm80
