// The entry points of one architecture. Each folder defines its table in kernels.cpp; dispatch.cpp picks
// one for each call.
#pragma once
#include <cuda_runtime_api.h>

#include "../diffattn.h"

namespace diffattn::cuda {

struct Kernels {
  const char* name;                 // of the folder; DIFFATTN_CUDA_KERNELS asks for it
  bool (*runs_on)(int capability);  // of a device: 10·major + minor
  bool (*takes)(const Shape&);
  // An entry point may be absent: then the next architecture serves the call.
  void (*fwd)(const FwdParams&, cudaStream_t);
  int64_t (*bwd_workspace)(const BwdParams&);
  void (*bwd)(const BwdParams&, void* workspace, cudaStream_t);
  int64_t (*decode_workspace)(const DecodeParams&);
  void (*decode)(const DecodeParams&, void* workspace, cudaStream_t);
};

extern const Kernels kSm80;

}  // namespace diffattn::cuda
