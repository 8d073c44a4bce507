// What kernels_<isa>.cpp compiles for each instruction set; dispatch.cpp chooses among them.
#pragma once
#include "../diffattn.h"

namespace diffattn::cpu {

// The entry points over one type of products.
struct Calls {
  void (*fwd)(const FwdParams&, const Parallel&);
  void (*bwd)(const BwdParams&, const Parallel&);
  void (*decode)(const DecodeParams&, const Parallel&);
};

// Over numbers: of fp64 tensors, and of all others, which are converted to fp32.
struct Kernels {
  Calls doubles, floats;
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
extern const Calls kAvx512Bf16, kAvx512Bf16Emulated;  // over pairs of bf16
#endif

}  // namespace diffattn::cpu
