// The entry points of one architecture. Each folder defines its table in kernels.cpp; dispatch.cpp picks
// one for each call.
#pragma once
#include "../diffattn.h"

namespace diffattn::cuda {

// For one kind of calls. Those that it does not take, or all if it is absent ({}), the next architecture serves.
template <class Params>
struct Offer {
  bool (*takes)(const Params&);
  EntryPoint<Params> entry;
};

struct Kernels {
  const char* name;                 // of the folder; DIFFATTN_CUDA_KERNELS asks for it
  bool (*runs_on)(int capability);  // of a device: 10·major + minor
  Offer<FwdParams> fwd;
  Offer<BwdParams> bwd;
  Offer<DecodeParams> decode;
};

extern const Kernels kSm80;
// Null, as an address, where the build leaves them out.
[[gnu::weak]] extern const Kernels kSm90;

}  // namespace diffattn::cuda
