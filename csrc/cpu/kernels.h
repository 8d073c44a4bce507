// The entry points of one instruction set. kernels_<isa>.cpp defines each table; dispatch.cpp
// picks one when the library is first used.
#pragma once
#include "../diffattn.h"

namespace diffattn::cpu {

struct Kernels {
  const char* isa;
  void (*fwd)(const FwdParams&, const Parallel&);
  void (*bwd)(const BwdParams&, const Parallel&);
  void (*decode)(const DecodeParams&, const Parallel&);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512, kAvx512Bf16, kAvx512Bf16Emulated;
#endif

}  // namespace diffattn::cpu
