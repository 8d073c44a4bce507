// The 8-bit floats of the CUDA headers: instructions from sm_89 on, NVIDIA's own integer arithmetic before.
#include <cuda_fp16.h>
#include <cuda_fp8.h>

template <class F>
__device__ void narrow(const float* x, unsigned char* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = F(x[i]).__x;
}
template <class F>
__device__ void widen(const unsigned char* x, float* y) {
    F value;
    value.__x = x[threadIdx.x];
    y[threadIdx.x] = float(value);
}

extern "C" __global__ void narrow_e4m3(const float* x, unsigned char* y, int n) { narrow<__nv_fp8_e4m3>(x, y, n); }
extern "C" __global__ void narrow_e5m2(const float* x, unsigned char* y, int n) { narrow<__nv_fp8_e5m2>(x, y, n); }
extern "C" __global__ void widen_e4m3(const unsigned char* x, float* y) { widen<__nv_fp8_e4m3>(x, y); }
extern "C" __global__ void widen_e5m2(const unsigned char* x, float* y) { widen<__nv_fp8_e5m2>(x, y); }
extern "C" __global__ void narrow_pair_e4m3(const float2* x, unsigned short* y) {
    y[threadIdx.x] = __nv_fp8x2_e4m3(x[threadIdx.x]).__x;
}
