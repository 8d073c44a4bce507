// A library that frees device memory when the process ends, as CUTLASS's examples do.
#include <cuda_runtime.h>

struct Holder {
    void* p = nullptr;
    ~Holder() { cudaFree(p); }
};
static Holder holder;

extern "C" int hold(size_t bytes) { return cudaMalloc(&holder.p, bytes); }
