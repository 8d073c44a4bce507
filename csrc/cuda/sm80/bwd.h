// The backward kernels' launchers, one a head dim, each compiled by a file of its own.
#pragma once
#include <cuda_runtime_api.h>

#include "../bwd_workspace.h"

namespace diffattn::cuda::sm80 {

template <int kHeadDim>
void launch_bwd(const BwdParams&, const BwdWorkspace&, cudaStream_t);

extern template void launch_bwd<32>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
extern template void launch_bwd<64>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
extern template void launch_bwd<96>(const BwdParams&, const BwdWorkspace&, cudaStream_t);
extern template void launch_bwd<128>(const BwdParams&, const BwdWorkspace&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
