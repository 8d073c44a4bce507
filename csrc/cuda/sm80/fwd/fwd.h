// The forward for sm_80.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../../../diffattn.h"

namespace diffattn::cuda::sm80 {

void fwd(const FwdParams&, void* workspace, cudaStream_t);

// Head dims up to kHeadDim and up to kHeadDimV, which is as wide or twice as wide. instances/ compiles them, one
// file per head dim.
template <class Element, int kHeadDim, int kHeadDimV>
void launch_fwd(const FwdParams&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
