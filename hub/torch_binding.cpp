// The module of a build for the kernel hub: the bindings of one backend, with the ops under the namespace
// that kernel-builder makes for this build. It also writes registration.h.
#include "registration.h"

#define DIFFATTN_OPS TORCH_EXTENSION_NAME
#if defined(CUDA_KERNEL) && !defined(USE_CUDA)
#define USE_CUDA  // torch's headers: which of them declare streams
#endif

#include "../csrc/bindings/schemas.cpp"
#if defined(CPU_KERNEL)
#include "../csrc/bindings/cpu.cpp"
#include "../csrc/bindings/cpu_decode.cpp"
#elif defined(CUDA_KERNEL)
#include "../csrc/bindings/cuda.cpp"
#endif

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
