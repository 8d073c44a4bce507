// The entry points of one architecture. Each folder defines its table in kernels.cpp; dispatch.cpp picks
// one for each call.
#pragma once
#include "../diffattn.h"

namespace diffattn::cuda {

struct Kernels {
  const char* name;                 // of the folder; DIFFATTN_CUDA_KERNELS asks for it
  bool (*runs_on)(int capability);  // of a device: 10·major + minor
  bool (*takes)(const Shape&);
  // One may be absent ({}): then the next architecture serves the call.
  EntryPoint<FwdParams> fwd;
  EntryPoint<BwdParams> bwd;
  EntryPoint<DecodeParams> decode;
};

extern const Kernels kSm80;

}  // namespace diffattn::cuda
