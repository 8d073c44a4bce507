// Decoding for sm_80.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plan.h"

namespace diffattn::cuda::decoding {

int64_t decode_workspace(const DecodeParams&);
void decode(const DecodeParams&, void* workspace, cudaStream_t);

// Head dims up to kHeadDim and up to kHeadDimV, which is as wide or twice as wide; kRows query rows of a
// CTA. instances/ compiles them, one file per head dim.
template <class Element, int kHeadDim, int kHeadDimV, int kRows>
void launch_decode(const DecodeParams&, const DecodePlan&, cudaStream_t);

// Launched before and after launch_decode, if the plan asks for them.
void launch_append(const DecodeParams&, const DecodePlan&, bool to_ring, cudaStream_t);
void launch_combine(const DecodeParams&, const DecodePlan&, cudaStream_t);

}  // namespace diffattn::cuda::decoding
