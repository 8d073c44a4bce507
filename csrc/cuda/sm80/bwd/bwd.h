// The backward for sm_80.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "workspace.h"

namespace diffattn::cuda::sm80 {

int64_t bwd_workspace(const BwdParams&);
void bwd(const BwdParams&, void* workspace, cudaStream_t);

// Head dims up to kHeadDim; the narrow kernels if kHeadDimV is equal to it. instances/ compiles them, one file
// per head dim.
template <class Element, int kHeadDim, int kHeadDimV>
void launch_bwd(const BwdParams&, const BwdWorkspace&, cudaStream_t);

}  // namespace diffattn::cuda::sm80
