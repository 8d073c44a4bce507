// The forward kernels' launchers, one a head dim, each compiled by a file of its own.
#pragma once
#include <cuda_runtime_api.h>

#include "../../diffattn.h"

namespace diffattn::cuda::sm80 {

template <int kHeadDim>
void launch_fwd(const FwdParams&, cudaStream_t);

extern template void launch_fwd<32>(const FwdParams&, cudaStream_t);
extern template void launch_fwd<64>(const FwdParams&, cudaStream_t);
extern template void launch_fwd<96>(const FwdParams&, cudaStream_t);
extern template void launch_fwd<128>(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
