// Decoding: kernels for sm_80 and later, compiled for sm_90 too.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plan.h"

namespace diffattn::cuda::decoding {

int64_t decode_workspace(const DecodeParams&);
void decode(const DecodeParams&, void* workspace, cudaStream_t);
// The same with dependent launches, which want code that was compiled for the device.
void decode_dependently(const DecodeParams&, void* workspace, cudaStream_t);

struct Launch {
  cudaStream_t stream;
  bool dependent = false;  // begins while the kernel before ends (dependent.cuh)
};

// Head dims up to kHeadDim and up to kHeadDimV, which is as wide or twice as wide; kRows query rows of a
// CTA. instances/ compiles them, one file per head dim.
template <class Element, int kHeadDim, int kHeadDimV, int kRows>
void launch_decode(const DecodeParams&, const DecodePlan&, const Launch&);

// Launched before and after launch_decode, if the plan asks for them. Returns whether there was anything to append.
bool launch_append(const DecodeParams&, const DecodePlan&, bool to_ring, const Launch&);
void launch_combine(const DecodeParams&, const DecodePlan&, const Launch&);

}  // namespace diffattn::cuda::decoding
