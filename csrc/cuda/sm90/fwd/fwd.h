// The forward for sm_90a.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tensor_maps.h"

namespace diffattn::cuda::sm90 {

bool takes_fwd(const FwdParams&);
void fwd(const FwdParams&, void* workspace, cudaStream_t);

// Head dims up to kHeadDim and up to kHeadDimV. instances/ compiles them, one file per head dim.
template <class Element, int kHeadDim, int kHeadDimV>
void launch_fwd(const FwdParams&, const TensorMaps&, cudaStream_t);

// How many rows of Q and keys their tiles have. O of 256 columns leaves registers for 64 keys.
template <int kHeadDim, int kHeadDimV>
constexpr TileRows kTileRows = {128, kHeadDimV <= 128 ? 128 : 64};

}  // namespace diffattn::cuda::sm90
